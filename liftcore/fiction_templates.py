"""The prose behind liftcore.fiction, as plain text in a small line format.

    # name | topic      a section, printed as one paragraph; "title" and "world" are special
    $ key kind args     a value drawn once: man, woman, given-man, given-woman,
                        surname, place, name, object, num LOW HIGH, year LOW HIGH,
                        date YEAR LOWMONTH HIGHMONTH
    - sentence          a sentence of the section, with {key} for values, {key.last} for a surname
    / sentence          another wording of the sentence above; one of them is printed
    [key: words]        inside a sentence: the words that answer the question of that key
    ? key kind question what the answer answers
    + key phrase        an event dated by the value of that key
    = a - b | question  a question on two values, answered by their difference or by {key}
    0 question          a plausible question which the text leaves open

Indented lines continue the line above. a(n) becomes the right article. Values declared under
"world" are shared by all sections of a genre; all others belong to their section. Sections never
lean on one another, because a document prints a random choice of them in random order.
"""

# Parts that names and things are put together from, chosen so that the results exist nowhere.
SYLLABLES = {
    "given": "Tor Hal Bren Jor Vel Dar Cal Ger Ked Lor Nev Rud Sten Wen Yor Ib Om Ul Fas Pell",
    "man": "vek dano imar uric olt emas und avel igar oth ovin astro",
    "woman": "issa enne avi ola etha irel una adine ory imsa ovia elt",
    "family": "Ask Brun Cadd Dov Esk Fenn Garr Hask Ist Jarr Kess Lund Mord Nesk Orr Pell Quist "
    "Rav Sarn Thrav Ulv Vand Wick Yarr Zell Trosk Blan",
    "family end": "aby erin ock ulme anto esk iver olde umber itch avane ethor ostrom ill ardine",
    "place": "Vel Orm Tas Kir Hul Bel Dras Nes Sol Quen Mer Tol Arv Gost Lin Pra Um Skel Bru",
    "place middle": "la o i en u ar e",
    "place end": "mar wick holm dun foss gate nay vost thwaite reth sund low",
    "name": "Ser Tav Ael Ni Ou Kes Vor Mi Thel Zan Ir Bal Du Fen",
    "name middle": "ri va lo me du sha",
    "name end": "ndra leth vane mor ssil thu rion kka nay vis",
    "stuff": "pewter brass walnut horn slate copper ivory amber iron tin porcelain ebony pearl "
    "silver",
    "thing": "thimble inkstand whistle snuffbox comb ladle buckle candlestick nutcracker flute "
    "egg-cup shoehorn napkin-ring doorknob butterfly pepper-mill",
    "month": "January February March April May June July August September October November "
    "December",
}

# Sentences that lead from one section to the next; each is printed at most once in a document.
LINKS = (
    "So much for {prev}.",
    "Having dealt with {prev}, this account can turn to {topic}.",
    "The papers are fuller on the subject of {topic}.",
    "Little connects {prev} with {topic} except that both were long remembered.",
    "Quite different in character is the matter of {topic}.",
    "Anyone who asks about {prev} is soon told about {topic} as well.",
    "A page must also be given to {topic}.",
    "There remains, among other things, {topic}.",
    "From {prev} it is no great distance to {topic}.",
    "Readers weary of {prev} may prefer {topic}.",
    "A thicker folder is devoted to {topic}.",
    "{Topic} belongs here too, though it is seldom mentioned nowadays.",
)

# Sentences that open the second and third account of a long document.
BRIDGES = (
    (
        "The next account in this volume shares nothing with the one before it except the clerk "
        "who copied both.",
        "Bound behind that account is another, on quite other people, which the same owner had "
        "collected.",
    ),
    (
        "One more manuscript was found in the same chest, and it is printed here so that the "
        "collection may stay together.",
        "The volume closes with a paper that came from a different house altogether, and "
        "nobody has explained how it got there.",
    ),
)

HARBOUR = """
# title
- A Short Chronicle of the Harbour of {Town}
/ {Town}: Notes on the History of a Port
/ The Harbour Book of {Town}

# world
$ Town place
$ River name

# opening | the charter
$ found year 1641 1699
$ notary man
- {Town} stands where the {River} meets the sea, on a shelf of dark rock that shelters one deep
  basin from the west wind.
/ The town of {Town} owes its existence to a pool of deep water at the mouth of the {River},
  hidden from westerly gales by a low black reef.
- For generations nobody lived there except a few families of salt-boilers, who sold their salt
  upriver and asked nothing of the sea.
/ Its first inhabitants boiled salt for a living, traded only with the villages inland, and kept
  their backs to the water.
- That changed when a storm drove a merchant fleet in for shelter, for the captains wished to
  come back, and at their request the right to keep a harbour was granted in [found: {found}].
/ It took a gale, and a merchant fleet that sat it out there unharmed, to show them what they
  owned, and the charter allowing ships to be received and taxed was sealed in [found: {found}].
- The roads being what they were, the parchment came home over the hills on the back of the young
  notary who had pleaded for it, [notary: {notary}].
/ No carriage could pass the hills that spring, so the sealed document was brought home on foot
  by a notary of twenty-two named [notary: {notary}].
- What follows is arranged by subject rather than by year, since the town kept its papers that
  way, and the reader will have to hold the dates in mind.
/ The pages below respect the town's habit of filing its papers by subject, so that early and
  late events stand side by side.
? found date Since when was {Town} entitled to take in vessels and charge them?
? notary person Which lawyer delivered the founding document of {Town}?
+ found the granting of the harbour charter
0 How much did {Town} pay for its charter?

# mole | the long mole
$ y year 1705 1905
$ len num 210 890
$ mason man
- The basin was safe but small, and once a dozen ships lay in it the thirteenth had to ride
  outside.
/ Within a lifetime the natural basin had grown too small, and late arrivals were left to pitch
  at anchor beyond the reef.
- A mole of dressed stone was therefore proposed, opposed for years by those who would have to
  pay for it, and finally begun in [y: {y}].
/ After much quarrelling over who should bear the expense, the first stone of a mole was lowered
  into the water in [y: {y}].
- They took their drawings from a mason who had never built anything wetter than a chapel, and
  whose name was [mason: {mason}].
/ To general surprise the council passed over three engineers and entrusted the design to a
  builder of chapels, [mason: {mason}].
- He laid the blocks slantwise, like books fallen sideways on a shelf, so that each wave pressed
  them more firmly together.
/ His idea was to lean every course against the one before, which let the sea itself do the work
  of tightening the wall.
- When the last lantern post had been set, the wall measured from root to tip [len: {len} paces].
/ It grew slowly, a summer at a time, and stopped when the money did, at a length of
  [len: {len} paces].
- Children are still told that the builder walks it at low tide, counting.
/ Not one block has shifted since, although two ships have been wrecked in trying.
? y date When did construction of {Town}'s breakwater start?
? mason person Who was the architect of the sea wall?
? len number What is the full extent of the wall that protects the anchorage?
+ y the start of work on the mole
= {mason} | Who designed the structure that was begun in {y}?
0 What did the stone for the mole cost?

# lamp | the lamp on the point
$ y year 1705 1905
$ keeper woman
$ h num 31 96
- Ships coming from the south could not see the harbour mouth until they were nearly upon the
  reef, and every autumn one or two saw it too late.
/ The reef that sheltered the basin also hid it, and captains approaching by night had to find
  the gap by the sound of the surf.
- The pilots paid for a remedy out of their own pockets: a lamp on the point, which burned for
  the first time in [y: {y}].
/ Weary of burying strangers, the pilots' guild took up a collection for a light, and its flame
  was first seen from the sea in [y: {y}].
- They built cheaply, of timber and tarred canvas, and because the ground was soft they dared
  raise the tower no higher than [h: {h} feet].
/ The tower was a modest thing of larch beams on a clay footing, and its gallery stood above the
  grass by only [h: {h} feet].
- Tending it was thought a task for an old sailor, but the three who tried it left within a year,
  and the post went to a widow with no dread of solitude, one [keeper: {keeper}].
/ Three retired seamen gave up the watch, one after another, before it was handed to a
  schoolmaster's widow called [keeper: {keeper}].
- She trimmed the wick every two hours, wrote verses between times, and left behind a logbook
  that is half weather and half rhyme.
/ She kept it for the rest of her life, and the log in her neat hand is the best record of the
  weather that the coast possesses.
? y date When was the coastal light lit initially?
? h number How tall was the wooden beacon tower?
? keeper person What was the bereaved woman called who looked after the light?
+ y the first lighting of the lamp on the point
= {keeper} | Who stayed on as keeper of the light that was first seen in {y}?
0 What kind of oil did the lamp burn?

# bell | the fog bell
$ y year 1705 1905
$ foundry place
$ w num 410 990
- Fog is more to be feared on this coast than wind, and after one bad autumn the council resolved
  to buy a bell.
/ A light is no help in fog, and fog lies here for a third of the year, so that nothing would do,
  in the end, but a great bell.
- No founder nearby would cast one so large, and the order went at last to a workshop far inland,
  in the town of [foundry: {foundry}].
/ The smiths of the district declined the commission, one by one, until an offer arrived from the
  foundry of [foundry: {foundry}].
- It came down the valley on a raft, wrapped in straw, and was found on arrival to weigh
  [w: {w} pounds].
/ Four oxen drew it the last mile, and the customs scales, which had never been so tried, put its
  weight at [w: {w} pounds].
- Hung from an oak frame at the harbour mouth, it was struck by hand until a carpenter rigged a
  float that let the swell do the ringing, a contrivance he finished in [y: {y}].
/ Boys were paid to strike it, fell asleep, and were replaced by a wooden float that worked the
  clapper with the swell, an improvement dated [y: {y}].
- The note was so mournful that lodgers in the front street asked for a reduction of rent.
/ Its voice is a minor third lower than intended, which the founder blamed on the damp and
  everybody else on the founder.
? foundry place In which town was the warning bell made?
? w number How heavy was the warning bell?
? y date When did the sea itself begin to ring the bell?
+ y the fitting of the float that rang the fog bell
= {foundry} | Where was the object cast that the swell rang from {y} on?
0 How long did the casting of the fog bell take?

# winter | the hard winter
$ y year 1705 1905
$ n num 22 88
$ baker woman
- Old people measured everything by the winter in which the basin froze from side to side, which
  was that of [y: {y}].
/ Salt water seldom freezes here, and the one time the whole basin set hard, as far back as the
  records go, was the winter of [y: {y}].
- The ice closed overnight around the grain ships that should have sailed that morning, and their
  crews walked ashore.
/ Crews woke to find their vessels fixed like flies in resin, and came ashore on foot, carrying
  their bedding.
- At first it was a holiday, with stalls and skating, but by the third week flour was short and
  the stalls were being burned for fuel.
/ For a fortnight the young danced on the ice, and then snow closed the inland road and people
  began to count their sacks.
- Order was kept by a baker who locked her shop, weighed out every loaf herself and took no
  payment; she was called [baker: {baker}].
/ A coarse grey bread, baked from ship's grain and given out by the ounce, kept them all alive,
  thanks to the obstinacy of [baker: {baker}].
- When the thaw came, the town had been fed in this fashion, without help from outside, for
  [n: {n} days].
/ An account scratched on the oven door shows that the siege of the frost lasted [n: {n} days].
- The owners of the grain sent a bill, and the council, after some thought, framed it.
/ The owners sued for their cargo afterwards and were awarded, by a jury of those who had eaten
  it, one loaf.
? y date When was the anchorage completely covered by ice?
? baker person Who rationed bread while the port was cut off by frost?
? n number How long did the frozen isolation go on?
+ y the freezing of the basin
0 How many ships were caught in the ice?

# fever | the fever house
$ y year 1705 1905
$ doctor woman
$ isle place
- Sickness came by sea like everything else, and the town's answer to it was a house for the sick
  on the islet of [isle: {isle}].
/ Ships carried fever as readily as pepper, and crews under suspicion were put ashore, out of the
  way of the town, on a rock called [isle: {isle}].
- At the beginning it was no more than a shed with a stove, and those who were sent there made
  their wills beforehand.
/ The first building had a roof and very little else, and few who were rowed over expected the
  boat to come back for them.
- Matters improved when the house was given to a physician who had quarrelled with every hospital
  she had served, Doctor [doctor: {doctor}].
/ Elsewhere they had dismissed her for opening windows, but here a free hand was given to Doctor
  [doctor: {doctor}].
- She had the walls limed, the water boiled and the bedding burned, and when the council
  complained of the waste she invited it to spend a night there.
/ She insisted on clean linen, boiled water and visits from relatives, the last of which was
  considered madness.
- The great test was the fever that a timber ship brought in, which the house contained within
  its own walls in [y: {y}].
/ Her methods were proved when a contagion that emptied half the ports of the coast stopped at
  the landing stage, in [y: {y}].
- The shed is gone, but the limekiln she built still stands.
/ After that the council complained no more, or at any rate not in writing.
? isle place Where were infected crews taken?
? doctor person Which physician reformed the quarantine?
? y date When was the epidemic successfully held back by the quarantine?
+ y the containing of the great fever
= {doctor} | Who directed the house that contained the contagion of {y}?
0 What was the illness that the fever house contained?

# school | the school of navigation
$ y year 1705 1905
$ first num 12 29
$ teacher man
$ prize object
- Pilots had always taught their sons, which worked well enough until there was a generation of
  daughters.
/ The craft of the pilots passed from father to son, and it nearly died out when for once there
  were hardly any sons.
- A proper school was opened in consequence, in a loft above the rope store, in [y: {y}].
/ The remedy was a school that would take any child who could do sums, and it was opened, above
  the smell of the tar store, in [y: {y}].
- On the first morning the benches, which had been made for eight, had to hold a class of
  [first: {first} pupils].
/ A handful had been expected, and the register for the opening day lists
  [first: {first} pupils].
- A lame boatswain who had taught himself the stars on night watches became their master, and
  they learned to know from afar the step of [teacher: {teacher}].
/ To teach them the guild hired a boatswain with a crushed foot and an astonishing memory,
  [teacher: {teacher}].
- He used no books, made his scholars draw the coast from memory, and each year gave the best of
  them his only treasure to keep until the next, [prize: a(n) {prize}].
/ Every summer they drew the whole coast blindfold in wet sand, and the most exact of them was
  lent for a year the thing the master valued most, [prize: a(n) {prize}].
? y date When did lessons for future pilots start?
? first number How large was the initial class in the loft?
? teacher person Who instructed the young navigators?
? prize object What was the reward for the top student each year?
+ y the opening of the school of navigation
= {teacher} | Who taught at the institution that was opened in {y}?
0 How much did the pilots' school charge for a year?

# customs | the customs affair
$ y year 1705 1905
$ thief man
$ sum num 310 980
$ hide object
- The customs house was robbed only once, and by the person who held its keys.
/ In all the history of the customs house there was a single theft, and it was committed from the
  inside.
- Suspicion fell on sailors, pedlars and a visiting tenor before it reached the weigher, a
  churchgoing bachelor by the name of [thief: {thief}].
/ Nobody thought of the chief weigher, who sang in the choir and never touched wine; yet the
  culprit was [thief: {thief}].
- He had shaved a little from each payment for years, and the total, when an auditor finally
  added it up, came to [sum: {sum} crowns].
/ By rounding every sum downwards in the ledger and upwards at the counter, he had set aside for
  himself [sum: {sum} crowns].
- The coins turned up where no one would have searched, stuffed one by one into the lining of his
  winter coat, and with them he had kept, for luck, [hide: a(n) {hide}].
/ Constables found the money sewn into his coat, together with an object that he refused to
  explain, [hide: a(n) {hide}].
- His trial filled the church, the courthouse being too small, and he was sent away for life in
  [y: {y}].
/ He offered to repay it all if he might go on singing, and the judge, who was tone-deaf,
  banished him in [y: {y}].
? thief person Who embezzled the port's duties?
? sum number What was the amount stolen from the port's duties?
? hide object What odd possession was discovered with the embezzled coins?
? y date When was the embezzler sentenced?
+ y the trial of the customs weigher
= {sum} crowns | How much had been taken by the man who was tried in {y}?
0 Where did the banished weigher spend the rest of his life?

# herring | the herring trade
$ y year 1705 1905
$ barrels num 320 990
$ boats num 14 58
- Between the salt pans and the sea lay an obvious business, and yet it was strangers who first
  thought of packing herring in {Town}.
/ That a town with so much salt should cure fish seems plain enough, but the idea had to be
  brought from abroad.
- The strangers arrived with their own knives and coopers, rented a field, and within one season
  had filled [barrels: {barrels} barrels].
/ A party of foreign curers took a lease on the meadow by the slip, and its first summer's work
  amounted to [barrels: {barrels} barrels].
- The townspeople watched, learned, and then declined to renew the lease.
/ Their hosts studied the method closely, thanked them, and raised the rent until they left.
- From then on the fleet grew quickly, and at its largest it counted, including two boats that
  leaked, [boats: {boats} sails].
/ Everyone who could nail a plank went fishing, so that the number putting out on a fair evening
  rose to [boats: {boats} sails].
- It ended as suddenly as it had begun, for the shoals changed their course and were seen for the
  last time in [y: {y}].
/ Then the fish moved north, for reasons of their own, and the nets came up empty from the summer
  of [y: {y}].
- The coopers turned to making wash-tubs, and the smell is said to have lasted another ten years.
/ Half the sheds became chapels, and the rest fell down.
? barrels number What quantity of fish did the foreigners cure at the outset?
? boats number How big did the fishing fleet become at its peak?
? y date When did the shoals vanish?
+ y the disappearance of the herring
0 From which country did the first fish curers come?

# ferry | the ferry
$ y year 1705 1905
$ owner woman
$ far place
- Before there was a ferry, a traveller wishing to reach the other bank of the {River} had to
  walk a day upstream and a day down again.
/ The {River} divides the parish in two, and for centuries a wedding on the far side meant two
  days on the road.
- The person who thought of a rope was not a boatman at all but a weaver with a cousin across the
  water, [owner: {owner}].
/ Engineers had said that the current forbade a bridge, but they knew less about tension than did
  the weaver [owner: {owner}].
- She stretched a hawser of her own making from the fish steps across to the landing at
  [far: {far}].
/ Her cable, plaited from eleven strands, was made fast to an elm on the other shore, in the
  hamlet of [far: {far}].
- A flat barge pulled itself along this line with no more than two men at the winch, and the toll
  was whatever a passenger thought fair.
/ On it ran a raft with a railing, and its passengers were expected to help with the hauling.
- It survived ice, floods and a runaway bull, but not competition, and was withdrawn from service
  in [y: {y}].
/ Wear told on it in the end, and after a last crossing with fiddles on board it was given up in
  [y: {y}].
? owner person Who invented the rope crossing?
? far place Which settlement lay at the opposite end of the rope crossing?
? y date When was the rope crossing discontinued?
+ y the last crossing of the rope ferry
0 How wide is the river where the ferry crossed?

# dredger | the dredging of the basin
$ y year 1705 1905
$ depth num 24 68
$ find object
$ eng man
- A river that feeds a harbour also fills it, and each spring the {River} left a little more of
  the hills on the harbour floor.
/ What the {River} gave with one hand it took with the other, for its mud was slowly turning the
  basin into a meadow.
- Men with rakes fought the silt for a century, until a bucket machine was put to work in
  [y: {y}].
/ Raking at low tide no longer sufficed, and a dredging engine with a chain of buckets was hired
  in [y: {y}].
- It was run by a stranger who came for a month, married into the bakery, and stands in the
  parish roll as [eng: {eng}].
/ It came with a mechanic who spoke to it as if it were a horse and to nobody else at all,
  [eng: {eng}].
- Under his care it dug until a plumb line in the middle of the basin showed
  [depth: {depth} spans].
/ He did not stop when he was told to, and the next sounding gave, to the delight of the pilots,
  [depth: {depth} spans].
- Among the anchors and bottles that came up in the buckets, the most discussed was
  [find: a(n) {find}].
/ Everything it raised was laid out on the quay for the owners to claim, and the one thing that
  no one recognised was [find: a(n) {find}].
? y date When did mechanical silt removal begin?
? eng person Who operated the bucket machine?
? depth number How deep was the anchorage after the silt had been cleared?
? find object What puzzling thing was brought up from the harbour floor?
+ y the arrival of the dredging engine
0 How much silt was removed from the basin?

# yard | the shipyard
$ y year 1705 1905
$ ship name
$ n num 61 240
$ builder man
- There was never much oak near {Town}, which makes it the more remarkable that ships were built
  there at all.
/ A shipyard needs timber and patience, and {Town} had only the second.
- The founder of the yard bought wrecks, took them apart on the beach and put them together again
  in better order; he was called [builder: {builder}].
/ It was made possible by a thrifty man who built new hulls out of the ribs of old ones, and who
  signed his letters [builder: {builder}].
- His masterpiece was a three-masted barque with not one new plank in her, christened
  [ship: the {ship}].
/ Of all these patched vessels the finest, a barque that outsailed the mail packet, bore the name
  [ship: the {ship}].
- She left the slip before a silent crowd, since half of it had bet that she would sink, in
  [y: {y}].
/ Her launch had to wait for a spring tide, and drew visitors from three parishes, in [y: {y}].
- Work of this kind needs many hands, and in the good years the wage book named
  [n: {n} shipwrights].
/ At its busiest the yard kept in wages, counting boys and the one-armed sawyer,
  [n: {n} shipwrights].
- What remains is a slipway, a crane without a hook, and a street of houses whose doors are
  hatches.
/ Iron put an end to it, there being no wrecks of that material worth buying.
? builder person Who created the business that made hulls from salvage?
? ship object Which vessel was considered the yard's best?
? y date When was the celebrated barque launched?
? n number How many people were employed in hull building at the height?
+ y the launch of the patched barque
= {builder} | Who owned the yard that launched a barque in {y}?
0 What did the founder of the yard pay for his first wreck?

# chart | the pilots' chart
$ y year 1705 1905
$ rocks num 101 290
$ spy woman
- For as long as anyone could remember, the pilots had refused to let the channel be mapped,
  because a map would have put them out of work.
/ The pilots kept the channel in their heads, and regarded any stranger with a pencil as a spy.
- Every Sunday a governess went out in a hired boat, apparently to sketch the cliffs, and so the
  secret was broken by [spy: {spy}].
/ It was therefore an amateur who surveyed it in the end, a governess with a lead weight hidden
  in her picnic basket, [spy: {spy}].
- On her sheet, which is drawn in brown ink and signed with a small crab, she marked a total of
  [rocks: {rocks} rocks].
/ After four summers she had placed on paper, each with its depth at low water,
  [rocks: {rocks} rocks].
- The guild bought up the entire printing and burned it, but a copy had already crossed the sea,
  and a corrected edition appeared in [y: {y}].
/ At first the guild threatened her, then it checked her figures, and at last it published them
  under its own seal in [y: {y}].
- Her soundings have never been bettered, and the pilots, it turned out, were busier than ever.
/ Wrecks fell by half, trade doubled, and there was more piloting to be done than before.
? spy person Who secretly surveyed the approach to the port?
? rocks number How many hazards appeared on the clandestine map?
? y date When was the map of the approach officially issued?
+ y the official printing of the channel chart
= {spy} | Who surveyed the channel whose chart was officially printed in {y}?
0 For which family did the surveying governess work?

# clock | the town clock
$ y year 1705 1905
$ maker man
$ slow num 13 39
- The town clock has four faces, and there was a time when no two of them agreed.
/ Visitors sometimes ask why the clock on the exchange has a face turned to the sea, where there
  is nobody to read it but gulls.
- It was given by a shipowner's heirs, in settlement of a debt, and started in the presence of
  the bishop in [y: {y}].
/ The gift of an heir with a bad conscience, it was wound for the first time in [y: {y}].
- Its maker, who had built nothing larger than a watch and took no advice, was [maker: {maker}].
/ The movement came from the bench of a watchmaker who had simply multiplied all his measures by
  forty, [maker: {maker}].
- His pendulum swelled in the sea air, and by the end of each week the town had fallen behind the
  rest of the world by [slow: {slow} minutes].
/ Salt got into the wheels, as he had been warned it would, and every Saturday the hands had to
  be pushed forward by [slow: {slow} minutes].
- Masters of vessels learned to allow for this, as they allowed for the tide, and to this day an
  unpunctual person is said to keep harbour time.
/ When it was at last put right there were complaints, for the shops had grown used to the longer
  day.
? y date When did the public timepiece begin to run?
? maker person Who constructed the four-faced timepiece?
? slow number How much did the public timepiece lose in a week?
+ y the starting of the town clock
= {maker} | Who built the clock that was started in {y}?
0 How much did the watchmaker receive for the town clock?

# theatre | the winter theatre
$ y year 1705 1905
$ actor woman
$ seats num 141 390
- Sailors laid up for the winter get into mischief, and it was to keep them out of it that the
  town acquired a theatre.
/ It may seem odd that a place of this size should have a theatre, but then it also had, every
  winter, several hundred idle men.
- A sail loft was fitted with a stage and a chandelier of ship's lamps, and the curtain went up
  in [y: {y}].
/ Planks were laid across the hull of a condemned brig, a roof was put over her, and the first
  play was given on board in [y: {y}].
- When every bench was filled, and the gallery with it, the house could hold
  [seats: {seats} persons].
/ By order of the fire warden, who attended each performance free of charge, the audience was
  never to exceed [seats: {seats} persons].
- Its star was a net-maker with a voice that carried across the basin, [actor: {actor}].
/ The queens and the murderesses were all played, for a wage in firewood, by the net-maker
  [actor: {actor}].
- She could not read, learned her parts by having them shouted over the noise of the quay, and
  forgot none of them until she died.
/ She is said to have died on the stage, and to have been applauded for it.
? y date When was drama first performed in the port?
? actor person Which performer was the favourite of the public?
? seats number What was the greatest permitted number of spectators?
+ y the first play at the theatre
= {actor} | Who was the star of the stage on which the first play was given in {y}?
0 What was the title of the first play performed in the town?

# spring | the quarrel over the spring
$ y year 1705 1905
$ widow woman
$ pipe num 2020 2990
- The harbour had water enough on one side, but what ships wanted to buy was the sweet kind.
/ A vessel about to cross an ocean needs drinking water, and the wells of {Town} were brackish.
- The only good spring rose in a private orchard, whose owner had no wish to see it trampled,
  [widow: {widow}].
/ There was one sweet spring in the district, it lay among apple trees, and the trees were the
  property of [widow: {widow}].
- The council offered money, then honours, then a lawsuit, and she replied each time with a
  basket of apples.
/ She refused to sell, on the ground that her father was buried there, though his grave could be
  seen in the churchyard.
- What she agreed to at last was a lead pipe, laid at the town's expense and passing round every
  root, so that its length came to [pipe: {pipe} ells].
/ In the end she let them tap it, provided that no tree was touched, and the pipe that wound its
  way to the quay used up [pipe: {pipe} ells] of lead.
- The tap was opened, with the owner looking on from a kitchen chair, in [y: {y}].
/ Water ran on the quay, tasting faintly of cider according to some, from [y: {y}].
- Her heirs still receive a basket of apples from the town each autumn, which they are bound to
  call delicious.
/ The orchard has since been built over, except for the one corner where the pipe begins.
? widow person Who owned the land from which drinking water was drawn?
? pipe number What length of tubing was required for the drinking water?
? y date When did fresh water first reach the ships?
+ y the opening of the water tap on the quay
= {widow} | Whose spring supplied the tap that was opened in {y}?
0 How many apple trees stood in the orchard?

# closing | the archive
$ y year 1906 1929
$ clerk woman
- All these papers might have been lost, because the cellar in which they lay was flooded at
  every high tide.
/ That anything at all is known of these matters is due to one act of disobedience.
- The papers were carried upstairs, against instructions and in wet shoes, by the assistant clerk
  [clerk: {clerk}].
/ The mayor had ordered the old bundles to be pulped, and they were hidden in an attic instead by
  the assistant clerk [clerk: {clerk}].
- She dried them leaf by leaf on the washing lines of the back court, and sorted them as best she
  could.
/ She spent eleven years putting them in order, mostly at night.
- The reading room that now holds them was opened to the public in [y: {y}].
/ They were returned to a proper shelf, and the public was first admitted to consult them, in
  [y: {y}].
- Admission is free, but one is asked to bring slippers.
/ Those who visit should ask for the green boxes, which hold the best stories and the worst
  handwriting.
? clerk person Who rescued the records of {Town}?
? y date When could ordinary citizens begin to read the records?
+ y the opening of the reading room
0 How many boxes of papers does the reading room hold?
"""

EXPEDITION = """
# title
- Report of the Expedition to the {Land} Plateau
/ Across the {Land}: An Account by the Survey's Secretary
/ The {Land} Survey, Its Conduct and Its Results

# world
$ Land name
$ Society place
$ Leader woman
$ start year 1851 1897

# opening | the commission
$ d date start 2 3
$ n num 13 39
- No map in any library showed anything between the two branches of the {Land} range except a
  pale brown wash and the word uncertain.
/ Until lately the {Land} Plateau was known to geographers only as a gap, around which earlier
  surveys had walked with great care.
- To fill that blank the {Society} Society chose {Leader}, a hydrographer who had never before
  led anyone farther than the end of a pier.
/ The {Society} Society resolved to put an end to this and, to the surprise of several colonels,
  gave the command to {Leader}, who measured rivers for a living.
- Her party left the coast with two wagons, a barometer and a great deal of advice on [d: {d}].
/ After a winter of preparation the expedition set out in light rain, cheered by nobody in
  particular, on [d: {d}].
- Including the cook, whom the rules did not count, it numbered at that moment [n: {n} persons].
/ The muster taken at the first halt, and signed by the whole company, came to [n: {n} persons].
- This report does not follow the journey day by day; it takes up one subject after another, as
  the Society's rules require.
/ Since a diary has already been printed, the present report is divided by subject, and the order
  of events must be gathered from the dates.
? d date When did the journey to the {Land} begin?
? n number How many people travelled with {Leader} at first?
+ d the departure from the coast
0 Where did the party spend its first night?

# stores | the stores
$ flour num 41 98
$ choc num 101 240
$ sup man
- Provisions were bought for a year and a half, on the principle that hunger is the one
  instrument that always works.
/ The supply of food was planned on paper for eighteen months, and paper, as it turned out, was
  what the plan was good for.
- Everything went through the hands of a quartermaster who had once victualled a prison,
  [sup: {sup}].
/ {Leader.last} had left this department to a former prison steward who trusted nobody with a
  spoon and who answered to the name of [sup: {sup}].
- Bread being impossible above the tree line, he relied on hard biscuit baked from
  [flour: {flour} sacks] of barley meal, which had to be broken with a hammer.
/ His staple was a biscuit of extraordinary hardness, and to bake it in sufficient quantity he
  had used up [flour: {flour} sacks] of barley meal before the departure.
- He had also, without telling anyone, hidden under the tents a reserve of chocolate that weighed
  [choc: {choc} pounds].
/ What saved the mood of the camp was his secret, a store of bitter chocolate amounting to
  [choc: {choc} pounds].
- It was handed out only on bad days, so that some of the party began to hope for them.
/ A square was issued after each fall, frostbite or quarrel, and accidents became suspiciously
  frequent.
? sup person Who was responsible for the food?
? flour number How much barley went into the rations?
? choc number What was the size of the hidden supply of sweets?
= choc - flour | By how much does the number of pounds of hidden chocolate exceed the number of
  sacks of barley meal?
0 Where was the biscuit baked?

# mules | the mules
$ n num 41 97
$ lost num 12 38
$ mule name
- Wagons were of no use beyond the foothills, and the loads had to be shifted to mules.
/ At the last village the road ended, the wagons were sold, and the baggage went on by mule.
- The dealers, who had seen such parties before, asked absurd prices, and by pooling its private
  money the company could afford [n: {n} animals].
/ After three days of bargaining, during which one muleteer wept, the string that left the
  village consisted of [n: {n} animals].
- They were led by an elderly grey mare, deaf on one side, who went by the name of
  [mule: {mule}].
/ No one commanded them except a grey mare of uncertain age, which the boys had named
  [mule: {mule}].
- Where she refused to go, nobody went, and on at least two occasions the ground ahead proved her
  right.
/ She stopped dead before hidden crevices, bad water and, once, the Society's inspector.
- Not all the others were so prudent, and the losses through falls and cold rose in the end to
  [lost: {lost} head].
/ Of those that trusted their own judgement a good many fell, the final count of the dead being
  [lost: {lost} head].
? n number How large was the pack train on leaving the village?
? mule object What was the leading mare called?
? lost number How many pack beasts perished?
= n - lost | How many pack animals were left if all the recorded losses came from the original
  train?
0 In which village were the mules bought?

# river | the crossing of the gorge
$ d date start 5 6
$ w num 46 99
$ eng man
$ gorge name
- The first serious obstacle was a river in a cleft so narrow that its water could be heard but
  not seen.
/ Well before the plateau the way was cut by a gorge, which the guides had mentioned and everyone
  else had declined to believe in.
- A line shot across with an arrow showed the distance from lip to lip to be [w: {w} yards].
/ Measured by timing an echo, and later by a rope, the gap came to [w: {w} yards].
- Bridging it was the task of a carpenter who had signed on as a tent-maker, [eng: {eng}].
/ There was no engineer in the party, and it was the man in charge of the tents who offered to
  make a bridge, [eng: {eng}].
- He twisted it out of tent cord and willow, tested it with a sack of stones, then with a goat,
  and finally with himself.
/ He asked for all the spare rope, two days of silence and the help of anyone who could tie a
  bowline.
- The whole company stood on the farther side, without having lost so much as a kettle, on
  [d: {d}].
/ Crossing one at a time, with their eyes on the far wall, the last of them reached solid ground
  on [d: {d}].
- Nobody looked down, with the exception of a mule, which had to be carried.
/ The bridge was left hanging for the return, and was found then to be full of nesting birds.
? w number What distance separated the two edges of the chasm?
? eng person Who made the rope footbridge?
? d date When had everyone passed over the chasm?
+ d the crossing of the gorge
= {eng} | Who built what the party had finished crossing on {d}?
0 How deep was the gorge?

# camp | the winter camp
$ d date start 10 11
$ place place
$ cold num 41 63
- It had been meant as a halt of one week, and became the expedition's address for the winter.
/ Snow came a month before the almanac allowed it, and the party had to stay where it was.
- The site was a ring of boulders under an overhang, which the guides called by a word for an
  empty cupboard and the surveyors entered as [place: {place}].
/ They dug themselves in beneath a leaning cliff and, since a camp must have a name before it can
  have a latitude, called it [place: {place}].
- The last load of firewood was dragged in, and the entrance walled up with snow blocks, on
  [d: {d}].
/ All work outdoors had ceased, and the stove had been lit for the season, by [d: {d}].
- Mercury froze on some nights, and the spirit thermometer once showed, by lantern light,
  [cold: {cold} degrees] below the freezing point.
/ The lowest reading of the winter, taken by the cook because it was his turn, was
  [cold: {cold} degrees] under zero.
- To keep their wits they held lectures, on subjects chosen by lot, and the one on drains was
  asked for twice.
/ Evenings were filled with a play in five acts, of which every member wrote a page without
  seeing the others.
? place place Where did the party spend the frozen months?
? d date When did the party shut itself in for the frozen months?
? cold number How cold was the worst night?
+ d the retreat into the winter camp
0 Who tended the stove in the winter camp?

# peak | the measuring of the summit
$ d date start+1 6 7
$ h num 511 988
$ peak name
$ obs man
- The highest point of the plateau turned out to be no pinnacle but a rounded hill, which sheep
  could have climbed, had there been any.
/ For weeks the surveyors argued over which of five summits was the tallest, since each looked
  highest from the others.
- A clerk of accounts had taken up trigonometry as a cure for sleeplessness, and so the question
  was decided by [obs: {obs}].
/ {Leader.last} gave the theodolite to the one member with no opinion in the matter, a bookkeeper
  called [obs: {obs}].
- He observed from three stations, corrected for the bending of light, and fixed the height above
  the plain at [h: {h} ells].
/ From a base line paced out on lake ice he worked upwards, triangle by triangle, to a figure of
  [h: {h} ells].
- The whole party climbed it in felt boots to build a cairn, and drank something warm on top, on
  [d: {d}].
/ A stone marker was raised there, with everyone's initials beneath it in a bottle, on [d: {d}].
- It bears on the new map the name that the herders use, which is [peak: {peak}].
/ On the maps it is entered, at the wish of the herders who graze its western side, as
  [peak: {peak}].
? obs person Who computed the elevation of the tallest hill?
? h number What elevation was found for the tallest hill?
? d date When was a cairn placed on the tallest hill?
? peak place How is the tallest hill labelled on the new chart?
+ d the building of the cairn on the summit
= {obs} | Who measured the summit on which a cairn was built on {d}?
0 How many steps does the ascent of the summit take?

# plant | the new plants
$ n num 210 480
$ bot woman
$ plant name
- Botany had been included in the plan to please a donor, and nobody expected much of it.
/ The instructions gave plants a single line, after minerals and before miscellaneous.
- Nevertheless the pressed collection, which travelled home between sheets of an old newspaper,
  contained [n: {n} species].
/ In spite of this the drying frames were never empty, and the catalogue printed afterwards
  describes [n: {n} species].
- That was the achievement of a seed merchant's daughter who had paid for her own passage,
  [bot: {bot}].
/ The credit belongs, since nobody paid her and even the mule was her own, entirely to
  [bot: {bot}].
- She worked on her knees, in a hat with a veil, and could not be persuaded to look at the view.
/ Her days began before the others had woken, because certain flowers, she said, closed at the
  first sound of talking.
- Her favourite among the discoveries, a cushion of white stars that grows only where snow has
  lain all summer, received in the herders' tongue and in her book the name [plant: {plant}].
/ The rarest thing she found was a moss that glows faintly after rain, and its label, in
  capitals, reads [plant: {plant}].
- Two tufts of it survived the journey and have since refused to do anything at all.
/ It is now in every textbook, drawn slightly wrong.
? n number How many kinds of vegetation were gathered?
? bot person Which collector gathered the vegetation?
? plant object What did the collector call her best-loved discovery?
0 How many sheets were used for pressing the plants?

# sick | the sickness in the camp
$ d date start+1 2 3
$ n num 7 11
$ doc man
- In the second month of snow gums began to bleed, and tempers with them.
/ Trouble started with a loosened tooth, which its owner passed off as a joke.
- The surgeon recognised the complaint at once, having suffered from it on a whaling ship; his
  name was [doc: {doc}].
/ Knowledge of the disease was limited to one man, who had practised on whalers and did not like
  to speak of it, [doc: {doc}].
- Lime juice he had none, for the bottles had burst, so he boiled the needles of a dwarf pine and
  stood over each patient until the cup was empty.
/ He sent everyone able to stand out to scrape for sprouting grass beneath the snow, and made of
  it a green soup of terrible bitterness.
- At the worst there lay in the long tent, unable to lift a spoon, [n: {n} patients].
/ When the sick list was longest it carried the names of [n: {n} patients].
- The tide turned within a fortnight, and the last of them was struck off the list on [d: {d}].
/ Not one died, and the last patient left the infirmary tent, with some ceremony, on [d: {d}].
- The recipe has been sent to the Society, together with a warning about the taste.
/ Since then, no one who was there will drink anything green.
? doc person Which medical man treated the bleeding gums?
? n number How many were ill when the outbreak was at its peak?
? d date When was everyone pronounced healthy?
+ d the recovery of the last patient
= {doc} | Who treated the patients, the last of whom recovered on {d}?
0 On which whaling ship had the surgeon served?

# guide | the guides
$ guide man
$ pay num 21 78
$ gift object
- Without the herders of the southern slopes the expedition would have ended in the first bog.
/ It must be said plainly that the plateau was already known, in every fold, to the people who
  graze it.
- Their spokesman, who could find a path in fog by the taste of the water, was called
  [guide: {guide}].
/ The one who agreed to go with the surveyors, after observing them for a week with evident pity,
  was [guide: {guide}].
- He would not take money in advance, on the ground that it made people careless, and asked on
  the last day for [pay: {pay} florins], neither more nor less.
/ The fee he named at the very start, once and without any discussion, was [pay: {pay} florins],
  payable at the end of the road.
- What he truly wanted, it emerged, was a keepsake for his granddaughter, and he went home with
  [gift: a(n) {gift}].
/ To this {Leader.last} added from her own luggage a present that he had long been admiring,
  [gift: a(n) {gift}].
- His maps, drawn with a stick in wet clay, were copied each evening and never once found wrong.
/ Long afterwards he dictated his own version of the journey, in which the surveyors appear as a
  sort of weather.
? guide person Which herder showed the party the way?
? pay number What wage did the herdsman receive?
? gift object What souvenir did the herdsman take back with him?
0 How old was the chief guide?

# storm | the loss of the instruments
$ d date start 7 9
$ n num 24 95
$ saved object
- The day that did the most harm began without a cloud.
/ No accident of the journey was so costly as the one that lasted less than a quarter of an hour.
- A wall of dust came over the ridge about noon, lifted the instrument tent with its poles and
  carried it away, on [d: {d}].
/ It was a whirlwind, narrow as a street, and it passed through the middle of the camp on
  [d: {d}].
- Searchers on foot recovered one lens, which a herder's child had taken for ice, at a distance
  of [n: {n} furlongs].
/ Pieces were picked up for weeks, and a spring that had not been on any list was found beside
  the farthest of them, at [n: {n} furlongs].
- Of all that had stood on the shelves, the only article found intact was [saved: a(n) {saved}].
/ The chronometer was a tangle of wire, the sextant was never seen again, and what came through
  unharmed was [saved: a(n) {saved}].
- From that hour longitudes had to be worked from the moons of Jupiter, which took longer and
  made everyone a better astronomer.
/ The secretary proposed turning back, and was answered by the sound of {Leader.last} ruling
  lines for a new logbook.
? d date When did the whirlwind strike?
? n number How far had the wreckage of the tent been scattered?
? saved object Which item came through the whirlwind undamaged?
+ d the whirlwind in the camp
0 What was the value of the instruments lost in the whirlwind?

# ruins | the ruined halls
$ d date start+1 4 5
$ n num 41 98
$ reader woman
$ king name
- Nobody had been looking for buildings, and the first wall was sat upon for an entire lunch
  before it was noticed.
/ The ruins were found by a mule, which put a foot through a roof.
- Clearing began with soup ladles, the spades being elsewhere, on [d: {d}].
/ The first chamber was opened by candlelight, while a late frost still held the soil together,
  on [d: {d}].
- Under the turf lay a row of halls, open to the south, whose roofs had once rested on
  [n: {n} pillars].
/ A whole range of halls emerged in the course of a month, and the plan of them shows
  [n: {n} pillars].
- Along the lintels ran an inscription, and it was read, after nine weeks of headaches, by the
  expedition's youngest member, [reader: {reader}].
/ The writing above the doors resisted everyone until it was solved by a copyist hired to sharpen
  pencils, whose name was [reader: {reader}].
- It is a complaint about taxes, addressed to a ruler of whom nothing else is known,
  [king: King {king}].
/ It proved to be neither a hymn nor a law but a bill, made out for roof repairs to a sovereign
  called [king: King {king}].
? d date When did digging at the ancient site commence?
? n number How many columns had held up the ancient roofs?
? reader person Who deciphered the carved text?
? king person Which monarch is mentioned in the carved text?
+ d the first clearing of the ruins
= {reader} | Who read the inscription in the halls first cleared on {d}?
0 How old are the ruined halls?

# lake | the sounding of the lake
$ d date start+1 8 9
$ depth num 151 490
$ lake place
$ boat name
- In the centre of the plateau lies a lake so still that the first party to see it took it for
  sky.
/ The guides had kept the lake for the last, as a host keeps back the good wine.
- No name for it was agreed on by the herders, who preferred not to mention it, and the map calls
  it [lake: {lake} Water].
/ It is shown on the new sheet, in letters somewhat too large for it, as [lake: {lake} Water].
- A boat was made from hides stretched over tent poles and, in honour of the cook's wife, was
  named [boat: the {boat}].
/ To sound it they sewed together a boat of mule hide, coated her with tallow, and launched her
  as [boat: the {boat}].
- On windless mornings she was rowed from shore to shore while a stone was let down on knotted
  twine, and the deepest cast reached [depth: {depth} cubits].
/ The twine ran out, was lengthened with bootlaces, and touched ground at last at
  [depth: {depth} cubits].
- Work on the water was finished, and the boat eaten by foxes, by [d: {d}].
/ The closing entry in the lake book, which notes a single fish, was made on [d: {d}].
? lake place What is the still expanse of water called on the map?
? boat object Which name was given to the hide craft?
? depth number What was the greatest depth measured?
? d date When were the depth measurements concluded?
+ d the end of the soundings on the lake
= {lake} Water | Where did the soundings end on {d}?
0 How long did it take to sew the hide boat?

# quarrel | the quarrel over the route
$ d date start 8 9
$ rebel man
$ pass place
- There was one serious dispute, and since garbled versions of it have reached the newspapers, it
  is set down here without ornament.
/ Harmony, which the prospectus had promised, lasted until the party had to choose between two
  valleys.
- The geologist wished to go north, and said so loudly and with diagrams; this was
  [rebel: {rebel}].
/ Against {Leader.last}'s plan stood the geologist, a gifted man with a carrying voice,
  [rebel: {rebel}].
- {Leader.last} heard him out, asked for his figures, found an error in the third line, and said
  nothing about it until he had found it himself.
/ Instead of giving an order, the leader proposed that he scout his valley alone for a week, and
  lent him her own tent to do it in.
- He withdrew his objection before witnesses, and handsomely, on [d: {d}].
/ The peace was signed, on the back of a geological section, on [d: {d}].
- The way actually taken led over a saddle, hardly steeper than a staircase, which is known as
  [pass: {pass} Pass].
/ They then climbed out together by the southern gap, listed in the tables as
  [pass: {pass} Pass].
- He has since named a fossil after her, one with a great many legs.
/ For the rest of the journey the two of them shared a stove and, it was noticed, a dictionary.
? rebel person Which scientist disagreed with {Leader}?
? d date When was the disagreement about the valleys resolved?
? pass place Over which saddle did the party finally go?
+ d the settling of the quarrel over the route
0 Which newspaper first reported the quarrel?

# words | the word list
$ n num 520 990
$ ling woman
$ tongue name
- Languages were nobody's business, and so the only record of one was made by the person with the
  least to do.
/ Among the unplanned results is a vocabulary, begun on a wet afternoon for want of other
  occupation.
- It is owed to the photographer, whose plates had all been fogged by damp, [ling: {ling}].
/ Its author had come to take photographs and, after the dark-tent leaked, had none to develop;
  she was called [ling: {ling}].
- Sitting with the women at the milking, she took down words on the backs of ruined prints until
  she had [n: {n} entries].
/ By trading songs for nouns and riddles for verbs she brought together, in a biscuit tin,
  [n: {n} entries].
- The speech of the plateau has no term for north, four for different kinds of waiting, and one,
  much used of the visitors, that means both busy and lost.
/ It appears that the herders count by pointing at their knuckles, and that their language has a
  separate tense for things seen from above.
- Scholars who have examined the list can relate it to no other, and file it under the herders'
  own name for it, [tongue: {tongue}].
/ It has been printed under the word by which its speakers know it, which is [tongue: {tongue}].
? ling person Who compiled the vocabulary?
? n number How long was the vocabulary?
? tongue object What do the speakers call their own language?
0 How many people speak the language of the plateau?

# signals | the line of signals
$ d date start 6 7
$ n num 14 39
$ chief man
- No surveyor likes to be out of reach, and a chain of signal posts had therefore been ordered by
  the Society itself.
/ The Society had insisted on receiving news, and so a line of posts with wooden arms was to be
  set up behind the party as it advanced.
- In charge of it was a retired railwayman who believed that anything could be said with two
  flags, [chief: {chief}].
/ The idea was put into practice by a railwayman with strong opinions about the alphabet,
  [chief: {chief}].
- Counting the one that was struck by lightning and put up again, he erected in all
  [n: {n} posts].
/ Ridge by ridge he left a pair of men, a tent and a telescope, until there was a string of
  [n: {n} posts].
- A message could cross the foothills in the time it takes to boil an egg, and the first one to
  do so was dated [d: {d}].
/ The first complete dispatch, which asked for socks, reached the coast on [d: {d}].
- Its success was its undoing, for the Society began to send instructions.
/ Fog made nonsense of every third word, and the archive holds a long exchange about a missing
  bishop who was in fact a missing biscuit.
? chief person Which former train employee managed the semaphore chain?
? n number How many relay stations were built?
? d date When was the semaphore used successfully for a whole text?
+ d the first complete dispatch along the signal posts
= {chief} | Who directed the line whose first dispatch went through on {d}?
0 How many men were needed to work the signal posts?

# bees | the bee hunters
$ n num 41 97
$ head woman
$ village place
- On the warm side of the plateau the party came upon people who lived by honey and on ladders.
/ Not everyone whom the survey met kept sheep; under the southern cliffs there were the bee
  hunters.
- Their settlement, a row of baskets hung from pegs, is marked on the sketch map as
  [village: {village}].
/ They had a village of wicker huts that swung a little in the wind, and they called it
  [village: {village}].
- At the foot of the cliff sat an old woman who decided who might climb, and when, and after
  whom, [head: {head}].
/ All authority among them, including that over the weather, belonged to a small person in a
  smoke-blackened shawl, whose name was [head: {head}].
- She had the secretary's boots thrown into a ravine, since leather angers bees, and then sent
  him up the longest ladder, which had [n: {n} rungs].
/ To reach the combs one had to go up barefoot, with a smouldering branch between the teeth, by a
  rope ladder of [n: {n} rungs].
- He has declined to describe the view.
/ The honey was dark, tasted of smoke, and was not shared with the geologist.
? village place Where did the collectors of honey live?
? head person Who was in command of the honey collectors?
? n number How many steps did the climb to the combs involve?
0 How much honey did the bee hunters gather in a year?

# ice | the buried glacier
$ d date start+1 5 6
$ n num 131 480
$ finder man
- The most important discovery was made by a man looking for a button.
/ It had always been a riddle where the rivers of the plateau got their water in a dry year, and
  the answer lay beneath the cook's feet.
- In loose gravel, on hands and knees, the cook's mate had struck ice, clear and very old; his
  name was [finder: {finder}].
/ Under a field of stones, while digging a pit for refuse, black ice was uncovered by the cook's
  mate [finder: {finder}].
- Shafts were sunk all round the place before the spring floods could fill them, and the work was
  stopped on [d: {d}].
/ {Leader.last} had holes driven at regular distances, and could announce the extent of a whole
  buried glacier on [d: {d}].
- At the thickest point the drill went down, before it met rock, through ice to the depth of
  [n: {n} spans].
/ The deepest boring passed through frozen layers like the rings of a tree, and the tape then
  read [n: {n} spans].
- It is this ice, melting slowly under its blanket of stones, that keeps the rivers running in a
  drought.
/ A lump of it was served in the leader's tea, and was older, by her reckoning, than writing.
? finder person Which man hit upon the hidden frozen mass?
? d date When did the examination of the hidden frozen mass end?
? n number How thick was the hidden frozen mass?
+ d the end of the borings in the buried glacier
= {finder} | Who had discovered the ice in which the borings ended on {d}?
0 How old is the ice of the buried glacier?

# money | the accounts
$ sum num 3010 9890
$ audit woman
$ item object
- Any expedition can be reconstructed from its receipts, and those of this one fill a hatbox.
/ A word is due about money, which the printed diary passes over in silence.
- When all the bills had been paid, including one for a broken church window, the whole
  undertaking had cost [sum: {sum} florins].
/ The figure that the members of the Society wished to know, and that was read to them slowly,
  was [sum: {sum} florins].
- The books were examined by a retired headmistress, engaged for her temper, [audit: {audit}].
/ To forestall gossip the Society put the hatbox into the hands of an outside auditor, once
  headmistress of a girls' school, [audit: {audit}].
- She passed every entry but one, a sum paid in the second year, without any explanation, for
  [item: a(n) {item}].
/ Out of nine hundred slips of paper she objected to a single one, on which somebody had charged
  to science [item: a(n) {item}].
- {Leader.last} paid for it herself the same day, and would not say what it had been wanted for.
/ The item was traced to the geologist, who maintained that it had been essential.
? sum number What did the survey cost altogether?
? audit person Who checked the bookkeeping?
? item object Which purchase was queried by the checker of the books?
0 Who broke the church window that had to be paid for?

# closing | the return
$ d date start+1 11 11
$ crates num 61 148
$ port place
- The homeward march took half as long as the outward one, because everybody now knew what could
  be left behind.
/ Going home was easy by comparison, and the secretary's notes on it consist mainly of menus.
- They came down to the sea, a good deal thinner and speaking of nothing but soap, at
  [port: {port}].
/ The plateau let them go by a long green valley that ended, without any warning, in the fish
  market of [port: {port}].
- A steamer took them off, with their notebooks wrapped in oilcloth, on [d: {d}].
/ A steamer was waiting, and the date of embarkation, which closes the official period of the
  survey, was [d: {d}].
- In her hold travelled the collections, packed in moss and shirts, filling
  [crates: {crates} crates].
/ Their specimens went aboard ahead of them, the bill of lading being made out for
  [crates: {crates} crates].
- The brown wash on the Society's map has been painted over, and somebody has already written to
  point out a mistake in it.
/ {Leader.last} has gone back to measuring rivers, and says that it was all, when one comes to
  think of it, a matter of water.
? port place Which coastal town saw the end of the march?
? d date When did the ship carry the party away?
? crates number How many boxes of specimens were sent back?
+ d the embarkation for home
0 What was the name of the steamer that carried the party home?
"""

WORKSHOP = """
# title
- The House of {House}: A Century of Instruments
/ {House} of {City}: The Story of a Workshop
/ Brass and Glass: A History of the {House} Works

# world
$ House surname
$ City place
$ Founder given-man

# opening | the founding
$ y year 1761 1789
$ street name
- There is hardly an observatory in the country without some piece of brass on which the name
  {House} is engraved in small upright letters.
/ Anyone who has looked through an old telescope has very likely read, just below the eyepiece,
  the name of {House}.
- The firm began in {City} with {Founder} {House}, a spectacle-grinder's son who could not bear a
  bad screw.
/ Behind that name stood at first a single person, {Founder} {House} of {City}, who had learned
  to grind spectacles and wanted to grind something harder.
- Having fallen out with his master over the thickness of a hair, he rented a room with a north
  window and opened his own shop in [y: {y}].
/ With a borrowed lathe, a north window and no customers whatever, he set up on his own account
  in [y: {y}].
- The room lay over a stable, whose horses shook the benches at feeding time, in a lane called
  [street: {street} Row].
/ Its address was a lane too narrow for carriages, which explains why the early pieces are all so
  small, and which was known as [street: {street} Row].
- The firm never threw away a letter, and the chapters of its story are best told as its cabinets
  are labelled, by subject and not by date.
/ His successors kept everything, down to the string, and this history goes through their
  cupboards one at a time without regard to the calendar.
? y date When was the {House} firm established?
? street place In which alley were the earliest premises of {House}?
+ y the opening of the first shop
0 What was the name of {Founder} {House}'s father?

# first | the first sextant
$ cap man
$ price num 41 97
$ y year 1795 1904
- For a long while the firm sold nothing but levels and rulers, and its first sextant was made on
  a wager.
/ The earliest sextant to leave the house was not ordered by anyone; it was made to settle an
  argument about the possible.
- It was bought on sight, and paid for in coffee, by a sea captain who had only one good eye and
  went by the name of [cap: {cap}].
/ Its buyer came in out of the rain to ask the way, stayed for an hour, and left with the
  instrument under his coat; this was Captain [cap: {cap}].
- In the cash book, where the entry is underlined three times, it stands at
  [price: {price} ducats].
/ What he gave for it was thought a fortune at the time, namely [price: {price} ducats].
- He swore to bring it back if it ever erred by more than a hair, and bring it back he did,
  though only to have the case repaired, in [y: {y}].
/ The thing circled the globe four times, was dropped, drowned and struck by lightning, and came
  home to the showroom in [y: {y}].
- It hangs there still, and apprentices are made to take the height of the steeple with it on
  their first day.
/ Tested on its return, it was found to be truer than the standard in the workshop, which was
  quietly replaced.
? cap person Which seafarer acquired the earliest angle-measuring device?
? price number What did the seafarer pay?
? y date When did the device come back to its makers?
+ y the return of the first sextant
0 What was the name of the captain's ship?

# glass | the glass
$ place place
$ n num 31 94
$ mixer woman
- A lens can be no better than its glass, and the glass to be had in {City} was full of threads.
/ For years the house was held back not by its hands but by its glass, which came streaked and
  greenish from the bottle works.
- Relief came from an unlikely quarter, a convent furnace in the pine forest near
  [place: {place}].
/ The clear kind was discovered by accident, in the windows of a country inn, and traced from
  there to a furnace at [place: {place}].
- The secret was in the stirring, and the stirring was the business of a silent lay sister named
  [mixer: {mixer}].
/ The melt was in the charge of a woman who judged its heat by the colour of her own shadow,
  [mixer: {mixer}].
- She stirred with a rod of fired clay, never the same way twice, and let each pot cool in ashes
  for [n: {n} days].
/ By her rule no pot was to be broken open until it had rested under sand for [n: {n} days].
- Other makers bribed her helpers and copied the furnace brick by brick, and got bottles.
/ Half of every batch was thrown away even then, and garden paths in the district glitter with
  it.
? place place From where did the house obtain clear material for lenses?
? mixer person Who supervised the furnace?
? n number What cooling time did each pot need?
0 What did the house pay for a pot of clear glass?

# fire | the fire
$ y year 1795 1904
$ hero woman
$ lost num 101 390
$ saved object
- Every workshop that uses lacquer has its fire sooner or later, and {House} was no exception.
/ The worst night in the firm's history began with a pot of varnish and a cat.
- It broke out a little after midnight, in the windy spring of [y: {y}].
/ By the time the watchman had found his whistle the attics were lost, and the roof came down in
  [y: {y}].
- Gone were the patterns, the seasoned wood and, finished and awaiting collection,
  [lost: {lost} instruments].
/ When the ashes were raked, the stock list had to be shortened by [lost: {lost} instruments].
- Nothing would have been left at all but for the charwoman, who twice went back up the stairs
  with a wet sack over her head, [hero: {hero}].
/ One person kept her head, and as she scrubbed the floors she knew where everything was; her
  name was [hero: {hero}].
- She brought out the order books, the measuring bar and, because the foreman had shouted for it,
  [saved: a(n) {saved}].
/ Out of the window she threw, in this order, the ledgers, the cat and [saved: a(n) {saved}],
  which the foreman had been given by his mother.
- Two weeks later work was resumed in a skating hall, and she had been put in charge of the keys.
/ The partners offered her a pension; she asked for a share, and got it.
? y date When was the building destroyed by flames?
? lost number How much finished stock perished in the flames?
? hero person Who rescued valuables from the flames?
? saved object Which belonging of the foreman was rescued from the flames?
+ y the fire
= {hero} | Who saved the ledgers in the disaster of {y}?
0 How much did the insurers pay after the fire?

# comet | the great refractor
$ y year 1795 1904
$ obs place
$ len num 23 59
$ astr woman
- The largest thing the house ever made was a telescope that could not be tried out, because no
  room in {City} was long enough.
/ It is one matter to make a pocket telescope and another to make one that needs its own
  staircase, and the partners hesitated for two years.
- It had been ordered for the mountain observatory at [obs: {obs}].
/ The customer was an observatory newly founded, just under the snow line, at [obs: {obs}].
- From cap to eyepiece the tube measured, when the last ring had been screwed home,
  [len: {len} feet].
/ They drew it first in chalk along the street, for want of paper, and the chalk line ran to
  [len: {len} feet].
- Through it, on the second clear night, a faint comet was found by the assistant on duty,
  [astr: {astr}].
/ The instrument made the name of a young observer who had only been told to check it for dust
  and who found a comet instead, [astr: {astr}].
- The news arrived with the bill for the lamps, in the autumn of [y: {y}].
/ Her letter is pasted into the visitors' book, and bears the year [y: {y}].
- After that there was never again a question of making only small things.
/ The mathematicians sent congratulations, and the neighbours asked when they might have their
  street back.
? obs place Where was the biggest telescope installed?
? len number What was the length of the biggest telescope?
? astr person Which observer spotted a comet?
? y date When was the comet reported?
+ y the finding of the comet
= {obs} | At which observatory was the comet found that was reported in {y}?
0 How long did it take to polish the great lens?

# rules | the apprentices
$ n num 61 190
$ best man
$ years num 5 11
$ test object
- Parents paid to have a boy taken on, and the boy, as a rule, would have paid more to be let
  off.
/ Training at {House} was famous, chiefly among those who had not undergone it.
- The first year was spent in learning to file a flat surface flat, and the whole indenture ran
  for [years: {years} years].
/ A beginner was allowed to touch nothing but a broom and a file, and he remained bound to the
  firm for [years: {years} years].
- At the end came the proof, for which each candidate had to make, without any drawing,
  [test: a(n) {test}].
/ Whoever wished to be called a journeyman was shut up alone with his tools and told to come out
  with [test: a(n) {test}].
- The rolls, which are complete, show how many passed in the first hundred years, and the number
  is [n: {n} journeymen].
/ Few failed, since the weak had long since gone to sea, and by the centenary the wall of names
  had room for no more than its [n: {n} journeymen].
- Of all of these the one with the finest hand, by common consent, was a left-handed boy from the
  orphanage, [best: {best}].
/ The pride of the school was a foundling who could feel a scratch through a glove, and who is
  still spoken of as [best: {best}].
? years number How long did a trainee have to serve?
? test object What had to be made for the final examination?
? n number How many passed the final examination in the firm's first century?
? best person Who was reckoned the most talented trainee?
0 How many apprentices ran away to sea?

# suit | the lawsuit
$ y year 1795 1904
$ rival man
$ fine num 410 990
- Success attracts imitation, and there came a day when a(n) {House} theodolite was offered for
  sale that nobody at {House} had made.
/ The firm went to law only once, and the affair turned on the placing of a single dot.
- It was a clever forgery, produced in a cellar by a former engraver of banknotes,
  [rival: {rival}].
/ The name had been copied by someone who had every gift except patience, an engraver called
  [rival: {rival}].
- In court he maintained that brass was brass, until the foreman unscrewed a plate and showed
  that the false ones had been signed before they were polished.
/ He might have gone on for years, had he not set the full stop after the name a shade too low,
  as a clerk with a magnifying glass demonstrated to the jury.
- Judgement was given after a hearing of nine days, in [y: {y}].
/ The case, which law students still have to read, was decided in [y: {y}].
- By way of damages the house was to receive from him [fine: {fine} thalers].
/ He was ordered to hand over his tools and, in compensation, [fine: {fine} thalers].
- He could not pay, so he was employed instead, and all the lettering of the next twenty years is
  his.
/ Not a coin of it was ever seen, but the tools turned out to be excellent.
? rival person Who counterfeited the firm's products?
? y date When did the judges rule against the counterfeiter?
? fine number What compensation did the judges award?
+ y the judgement against the forger
= {rival} | Against whom was the judgement of {y} given?
0 How many forged instruments were sold?

# engine | the dividing engine
$ y year 1795 1904
$ inv man
$ teeth num 520 990
- To mark a circle with degrees is easy, and to mark it evenly is the whole of the art.
/ Until there was a machine for it, every scale was divided by eye, at night, when the streets
  were quiet.
- The machine that did it for the house was thought out by a musician, a builder of barrel organs
  who was used to placing pins, [inv: {inv}].
/ Hired for the winter to mend a music box in the showroom, the man who replaced the eye by a
  wheel was [inv: {inv}].
- He cut a great wheel, and on the rim of it, each one tried against all the rest, there were
  [teeth: {teeth} teeth].
/ The heart of his engine, which cost him three winters and most of his sight, was a horizontal
  wheel with [teeth: {teeth} teeth].
- It was set on a pillar that went down to bedrock, in a room no one might enter with warm hands,
  and divided its first circle in [y: {y}].
/ Treading the pedal for the first time, before an audience that had been asked not to breathe,
  he drew a perfect degree in [y: {y}].
- A day's labour became a matter of twenty minutes, and mistakes, which had been human, became
  rare and very large.
/ The men who had divided by eye were given other work, and a dinner, and one of them was seen to
  weep into the fish.
? inv person Who devised the apparatus for marking scales?
? teeth number How many notches did the large wheel have?
? y date When did the apparatus for marking scales start to work?
+ y the first circle cut on the dividing engine
= {inv} | Who invented the machine that divided its first circle in {y}?
0 How heavy was the wheel of the dividing engine?

# strike | the strike
$ y year 1795 1904
$ lead woman
$ n num 15 58
- Peace in the workshop was taken for granted until the partners tried to save on candles.
/ The one strike in the history of the house was not about wages, or not at first.
- Lamps were to be put out an hour earlier while the amount of work stayed as it was, and the
  first to lay down her polishing cloth was [lead: {lead}].
/ It arose from an order to polish by daylight only, and the woman who read the order aloud,
  folded it up and walked out was [lead: {lead}].
- Everyone followed her into the yard, where they sat on the packing cases and sang, and they
  kept it up for [n: {n} days].
/ Within the hour all the benches were empty, and they remained so for [n: {n} days].
- A shipment for the navy was waiting, the admiral wrote twice, and the partners discovered that
  they could afford candles.
/ Only when a partner attempted to polish a mirror himself, and was shown the result, did the
  firm give way.
- The agreement, which also mentions soap, was signed on a drumhead in [y: {y}].
/ A paper was drawn up that is still read out each January, dated [y: {y}].
- Under it the hands received, apart from light, a say in the choosing of the foreman.
/ She was afterwards offered a place in the office, which she declined on account of the air.
? lead person Who led the walkout?
? n number How long did the walkout last?
? y date When was the labour dispute settled?
+ y the settling of the strike
= {lead} | Who began the strike that was settled in {y}?
0 How many candles a month did the workshop burn?

# baro | the barometer
$ y year 1795 1904
$ owner man
$ n num 320 980
$ isle place
- What made the firm rich was not astronomy but a barometer.
/ The telescopes brought honour, and a plain household barometer brought the money.
- It was meant for farmers, had only five words on its dial, and was sold in such numbers that
  one good year accounted for [n: {n} dozen].
/ Cheap, ugly and hard to break, it left the packing room in its best year at the rate of
  [n: {n} dozen].
- The design was a favour to a parish priest whose hay had been spoiled three times running,
  Father [owner: {owner}].
/ The idea had come from a country clergyman, tired of praying for sunshine on the wrong days,
  the Reverend [owner: {owner}].
- Its fame was secured by a fishing fleet that stayed in port on its advice, under a blue sky,
  and so escaped the hurricane of [y: {y}].
/ People laughed at it until the hurricane that it foretold, against all the signs, in [y: {y}].
- The fishermen's wives sent a quilt, and a monument in the shape of the dial was put up on the
  island of [isle: {isle}].
/ A stone with the outline of the dial was put up by grateful families on the quay of
  [isle: {isle}].
? n number How many of the farmers' weather gauges were sold in the top year?
? owner person Which churchman suggested the weather gauge?
? y date When did the weather gauge predict a disaster?
? isle place Where does a monument to the weather gauge stand?
+ y the hurricane foretold by the barometer
0 What was the price of the barometer?

# move | the new building
$ y year 1795 1904
$ arch woman
$ win num 121 298
- By and by there were benches on the stairs, and the partners looked for land.
/ When a lens was sat upon for the second time, it was accepted that the house had become too
  small.
- They found it on a hill outside the walls, beyond the rumble of the carts, and the removal,
  which took a summer and one broken leg, was over in [y: {y}].
/ Everything was moved at walking pace, at night, on wagons with felt tyres, and the key was
  turned in the new door in [y: {y}].
- For the plans they had gone to a designer of greenhouses, and light was the chief thing they
  got from [arch: {arch}].
/ They had not gone to an architect of repute but to a woman known for her palm houses,
  [arch: {arch}].
- Every bench stood under its own pane, and the cleaner's contract speaks of
  [win: {win} windows].
/ It was said that she had drawn the openings and let the walls look after themselves, for there
  are [win: {win} windows].
- In winter the place was so cold that the men worked in mittens, yet no one would have gone
  back.
/ On bright days the building can be seen from the sea, and for some time pilots took it for a
  lighthouse.
? y date When did the firm finish relocating?
? arch person Who designed the premises on the hill?
? win number How many panes did the premises on the hill need to have cleaned?
+ y the move to the new building
= {arch} | Who drew the plans of the building that was occupied in {y}?
0 What did the new building cost?

# fair | the exhibition
$ y year 1795 1904
$ town place
$ medal object
$ judge man
- {House} did not believe in exhibitions, holding that an instrument ought to be looked through
  and not at.
/ No other house of the trade was so late to show its work in public, and it did so then only
  because a cousin had filled in the form.
- The firm took part for the first time, in a corner behind the ploughs, in [y: {y}].
/ The firm's debut came at the great fair of industry, under a leaking glass roof, in [y: {y}].
- The town that held the fair, and that has been trying to pay for it ever since, was
  [town: {town}].
/ All the nations were to meet there, and a number of them actually came, to the riverside
  meadows of [town: {town}].
- A juryman with a cold leaned on the case, read the scale without his spectacles, and called his
  colleagues over; he was a professor named [judge: {judge}].
/ Its luck lay in a short-sighted juryman, the first to notice that he could read the scale
  unaided, Professor [judge: {judge}].
- Medals having run out, the first prize took the form of [medal: a(n) {medal}].
/ First prize was theirs, and they were handed, since the gold had been spent on fireworks,
  [medal: a(n) {medal}].
- It has been used ever since to prop open the counting-house door.
/ The partners, who had not prepared a speech, thanked the cousin.
? y date When did the firm exhibit for the first time?
? town place Where was the industrial show held?
? judge person Which juror was impressed?
? medal object What did the winners receive as a prize?
+ y the firm's first exhibition
= {judge} | Which juror praised the firm at the exhibition of {y}?
0 How many visitors came to the exhibition?

# error | the faulty batch
$ y year 1795 1904
$ n num 62 240
$ cause man
- No account of the firm would be honest without the compasses that pointed nearly north.
/ There is one cabinet that visitors are not shown, and it is full of compasses.
- Each needle had been checked with care by a man whose boots, it was discovered much later, had
  steel in the heels; this was [cause: {cause}].
/ The inspector responsible was the most careful of all, and carried a magnet in his pocket for
  his rheumatism; he was called [cause: {cause}].
- Complaints came in from ships that had met the land too soon, and the whole series was called
  back in [y: {y}].
/ A letter from an angry whaler opened the partners' eyes, and they ran a notice in every port,
  asking for the return of the series, in [y: {y}].
- Most owners obeyed, and when the last parcel had been opened there lay on the table
  [n: {n} compasses].
/ Some captains had grown fond of theirs and simply learned to subtract, but the number sent back
  was [n: {n} compasses].
- The partners repaid every buyer, which nearly ruined them, and which was afterwards worth more
  than any advertisement.
/ Each customer got a sound one with a letter of apology, and many have kept the letter and lost
  the instrument.
? cause person Which checker caused the needles to be wrong?
? y date When were the defective needles recalled?
? n number How many defective pieces were handed in again?
+ y the recall of the compasses
= {cause} | Whose mistake led to the recall of {y}?
0 Which ship first complained about the compasses?

# heir | the daughter of the house
$ y year 1795 1904
$ heir given-woman
$ n num 23 49
$ skill place
- Twice the direct line failed, and the second time it was widely expected that the house would
  be sold.
/ The question of who should inherit had always been settled by sons, until there were none.
- Instead there came home a daughter who had been sent away to be finished and had studied optics
  instead, [heir: {heir} {House}].
/ Buyers had already measured the rooms when the youngest child walked in with a suitcase of
  lenses, [heir: {heir} {House}].
- Unknown to the family, she had spent the time at the technical school of [skill: {skill}].
/ She had been listening to lectures from behind a screen, no women being admitted, at the
  polytechnic of [skill: {skill}].
- The seals and the debts were made over to her by the trustees, not without a sermon, in
  [y: {y}].
/ Over the protest of an uncle she took the chair at the head of the table in [y: {y}].
- She disposed of the carriages, doubled the library, and conducted the business for
  [n: {n} years].
/ Nobody had given her six months, and she remained for [n: {n} years].
- Her portrait shows her with one eye shut.
/ It was she who wrote on the lintel, in chalk at first, the words: measure it again.
? heir person Which woman inherited the business?
? skill place Where had the heiress learned her science?
? y date When was control handed to the heiress?
? n number For how long did the heiress run the business?
+ y the succession of the daughter
0 How large were the debts that the daughter inherited?

# moon | the globe of the moon
$ y year 1795 1904
$ maker woman
$ craters num 2020 2990
- Among so many useful things the house made a useless one, and it became its emblem.
/ On the landing stands a globe of the moon, as tall as a child, which was never meant to be
  sold.
- It is of lime wood covered with plaster, and the whole of its surface was worked with dental
  tools by the bookkeeper's sister, [maker: {maker}].
/ One might take it for the labour of a learned society, but every ring and ridge on it was
  modelled by an invalid lodger, [maker: {maker}].
- From her window, through a telescope with a cracked lens, she had drawn each crater separately,
  and on the finished sphere there are [craters: {craters} craters].
/ She worked only on nights of full moon, she never used a published map, and in the end she had
  placed [craters: {craters} craters].
- The far side, which nobody can have seen, she left smooth, except for her initials, and the
  year, [y: {y}].
/ It was finished, apart from the side that no one has seen, by the winter of [y: {y}].
- Astronomers come to correct it, and usually go away having corrected their own charts.
/ The firm has been offered large sums for it, mostly by people with no idea how to get it down
  the stairs.
? maker person Who sculpted the lunar sphere?
? craters number How many pits are depicted on the lunar sphere?
? y date When was the lunar sphere completed?
+ y the completion of the moon globe
= {maker} | Who made the globe that was completed in {y}?
0 How much does the globe of the moon weigh?

# clockwork | the travelling salesman
$ y year 1795 1904
$ man man
$ n num 121 390
$ far place
- For its first decades the house waited for customers to come up the stairs, and then it hired a
  man who went down them.
/ Selling was thought beneath the firm, and the one commercial traveller it ever employed was
  listed in the books as a repairer.
- He was a failed opera singer with a sample case and an excellent memory for the names of dogs,
  [man: {man}].
/ With a demonstration microscope, a folding table and a drop of ditchwater there travelled
  through the provinces a certain [man: {man}].
- In the best of his years, when the roads were dry, he called at [n: {n} schools].
/ His method was to let the children look first and send the bill to the mayor, and in this way
  he equipped [n: {n} schools].
- The farthest point that he ever reached, according to the postmarks, was [far: {far}].
/ He was last heard of from a town at the end of the post road, [far: {far}].
- From there came a final order, correctly filled in and with a pressed flower attached to it, in
  [y: {y}].
/ The sample case came back alone, with everything in its place and all the accounts settled, in
  [y: {y}].
- It was kept packed for years, in case he should need it.
/ A microscope is still set aside for him at every stocktaking.
? man person Who sold microscopes on the road?
? n number How many places of education did the vendor serve?
? far place From where did the last sign of the vendor come?
? y date When was the last sign of the vendor received?
+ y the last sign of the travelling salesman
= {man} | Of whom did the firm receive the last sign in {y}?
0 How many languages did the travelling salesman speak?

# water | the water wheel
$ y year 1795 1904
$ miller man
$ rev num 41 99
- Lathes were turned by foot until the partners, walking by the river on a Sunday, noticed how
  much of it was going to waste.
/ A polisher's leg is a poor engine, and the house was glad to exchange it for a river.
- A mill stood empty just below the bridge, and they took it over, eels and all, in [y: {y}].
/ The lease of a disused fulling mill was bought at auction, against the bid of a brewer, in
  [y: {y}].
- To look after the wheel they kept on the old miller, who distrusted anything smaller than a
  sack, [miller: {miller}].
/ With the building came a miller who had not been told that it was sold, and who stayed on as
  wheelman, [miller: {miller}].
- By shifting a single board he could hold the speed of the shaft, to the astonishment of the
  engineers, at [rev: {rev} turns] a minute.
/ Fine work needs an even motion, and by ear alone he kept the main shaft, in flood and in
  drought, at [rev: {rev} turns] a minute.
- When he was asked how he did it, he said that one had to think like water, which is still the
  only instruction posted in the wheelhouse.
/ Attempts to replace him by a governor of brass balls were given up after a week.
? y date When did the firm acquire its source of power by the river?
? miller person Who tended the machinery driven by the stream?
? rev number How fast did the transmission rotate?
+ y the taking over of the mill
= {miller} | Who ran the wheel of the mill that was taken over in {y}?
0 How wide was the water wheel?

# closing | the museum
$ y year 1906 1929
$ n num 2010 2990
$ keeper man
- Today the benches are silent, for the same work is done elsewhere by machines that do not mind
  the cold.
/ The trade has moved on, as trades do, and the house now earns its bread by being looked at.
- The rooms were turned into a museum, with the tools lying as they were left, in [y: {y}].
/ A last order, for one small level, was delivered before the doors were opened to the public as
  a museum in [y: {y}].
- Its collection, which is still growing because attics are still being cleared, runs at present
  to [n: {n} pieces].
/ Gifts have come from every latitude, so that the inventory has reached [n: {n} pieces].
- Visitors are taken round by the last man to have been trained there, [keeper: {keeper}].
/ If the bell is answered slowly, that is because the guide, who served under the old foreman, is
  well over eighty; his name is [keeper: {keeper}].
- He lets children look through everything, and tells them to shut the other eye.
/ He has never been heard to praise anything except a flat surface.
? y date When did the premises turn into a museum?
? n number How big is the museum's holding?
? keeper person Who shows guests through the museum?
+ y the opening of the museum
0 What does it cost to enter the museum?
"""

GENRES = (HARBOUR, EXPEDITION, WORKSHOP)
