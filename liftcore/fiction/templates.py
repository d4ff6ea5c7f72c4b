"""The prose behind liftcore.fiction.documents: prose/*.txt, in a small line format.

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

from pathlib import Path

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

_FOLDER = Path(__file__).parent / "prose"
GENRES = tuple(
    (_FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    for name in ("harbour", "expedition", "workshop")
)
