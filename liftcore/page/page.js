"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const figures = JSON.parse(byId("figures").textContent);
  const words = byId("words"), place = byId("place"), seen = byId("seen");
  const tip = byId("tip"), said = byId("said");

  if (words) text();
  const faulty = byId("faulty"), copy = byId("copy");
  if (faulty) {
    const list = document.querySelector(".asked");
    faulty.addEventListener("change", () => list.classList.toggle("faulty", faulty.checked));
  }
  if (copy) copy.addEventListener("click", copyCommand);

  function copyCommand() {
    const command = byId("command");
    getSelection().selectAllChildren(command);
    const done = () => { copy.textContent = "Copied"; };
    const marked = () => { copy.textContent = "Marked: copy it with your keys"; };
    if (navigator.clipboard) navigator.clipboard.writeText(command.textContent).then(done, marked);
    else marked();
  }

  function text() {
    const marks = [...words.querySelectorAll("i")];
    const number = new Map(marks.map((mark, n) => [mark, n]));
    const blocks = [...words.children];
    // First token of each piece, and first piece of each block.
    const starts = [], firsts = [];
    let token = 0;
    marks.forEach((_, n) => { starts.push(token); token += figures.several[n] || 1; });
    blocks.reduce((at, block) => { firsts.push(at); return at + block.children.length; }, 0);
    let current = -1;

    const percent = (hundredths) => {
      if (hundredths === null) return "not known";
      const share = 100 * Math.exp(-hundredths / 100);
      if (share < 0.01) return "below 0.01 %";
      return (share < 1 ? share.toPrecision(2) : share.toFixed(1)) + " %";
    };
    const told = (n) => {
      const last = starts[n] + (figures.several[n] || 1);
      const name = last > starts[n] + 1 ? `tokens ${starts[n] + 1} to ${last}` : `token ${last}`;
      const lines = [`${name} of ${figures.tokens}: ${percent(figures.after[n])}`,
        `before training: ${percent(figures.before[n])}`];
      if (n in figures.likelier) lines.push(`likelier: “${figures.names[figures.likelier[n]]}”`);
      return lines.join("\n");
    };
    const pieceOf = (wanted) => {
      let low = 0, high = starts.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (starts[middle] <= wanted) low = middle; else high = middle - 1;
      }
      return low;
    };

    function show(n) {
      tip.textContent = told(n);
      tip.hidden = false;
      const box = marks[n].getClientRects()[0] || marks[n].getBoundingClientRect();
      const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
      const above = box.top - tip.offsetHeight - 6;
      const bar = document.querySelector(".map").getBoundingClientRect().bottom;
      tip.style.left = `${Math.max(8, left) + scrollX}px`;
      tip.style.top = `${(above > bar ? above : box.bottom + 6) + scrollY}px`;
    }
    const hide = () => { tip.hidden = true; };

    function enter(n, focus) {
      const next = Math.max(0, Math.min(marks.length - 1, n));
      if (current >= 0) marks[current].removeAttribute("tabindex");
      words.removeAttribute("tabindex");
      current = next;
      marks[current].tabIndex = 0;
      if (focus) marks[current].focus({ preventScroll: true });
    }
    function go(n, focus) {
      enter(n, focus);
      // Twice: what was not laid out yet may move what is below it.
      for (let i = 0; i < 2; i++) marks[current].scrollIntoView({ block: "center" });
      show(current);
    }

    // Only a pointer that moves: text that scrolls below one that rests tells nothing.
    let pointed = null;
    words.addEventListener("pointermove", (event) => {
      if (event.target === pointed || !number.has(event.target)) return;
      pointed = event.target;
      show(number.get(pointed));
    });
    words.addEventListener("pointerleave", () => {
      if (pointed) hide();
      pointed = null;
    });
    words.addEventListener("click", (event) => {
      if (number.has(event.target)) enter(number.get(event.target), true);
    });
    words.addEventListener("focusin", (event) => {
      const n = event.target === words ? Math.max(current, 0) : number.get(event.target);
      if (event.target === words) { go(n, true); return; }
      if (n !== current) enter(n, false);
      show(n);
      said.textContent = `${marks[n].textContent.trim() || "white space"}, ${told(n)}`;
    });
    words.addEventListener("focusout", hide);
    const unknown = (n) => /^l[34]$/.test(marks[n].className);
    const nextPlace = (from, by) => {
      let n = from;
      while (marks[n] && unknown(n)) n += by;
      while (marks[n] && !unknown(n)) n += by;
      while (by < 0 && marks[n - 1] && unknown(n - 1)) n -= 1;
      return marks[n] ? n : from;
    };
    words.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const ways = {
        ArrowRight: () => current + 1, ArrowLeft: () => current - 1,
        ArrowDown: () => below(1), ArrowUp: () => below(-1),
        Home: () => 0, End: () => marks.length - 1,
        n: () => nextPlace(current, 1), p: () => nextPlace(current, -1),
      };
      const way = ways[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!way) return;
      event.preventDefault();
      go(way(), true);
    });
    // The piece nearest to the current one in the next line.
    function below(by) {
      const here = marks[current].getBoundingClientRect();
      const middle = (here.left + here.right) / 2;
      let line = null, best = current, distance = Infinity;
      for (let n = current + by; marks[n]; n += by) {
        const box = marks[n].getBoundingClientRect();
        if (!box.width || by * (box.top - here.top) < here.height / 2) continue;
        if (line === null) line = box.top;
        if (Math.abs(box.top - line) > here.height / 2) break;
        const away = Math.abs((box.left + box.right) / 2 - middle);
        if (away < distance) { distance = away; best = n; }
      }
      return best;
    }
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-token]");
      if (!link) return;
      event.preventDefault();
      go(pieceOf(Number(link.dataset.token)), true);
    });

    // The strip.
    const bins = figures.shares.length;
    let bin = 0;
    function mark(to) {
      bin = Math.max(0, Math.min(bins - 1, to));
      const share = figures.shares[bin];
      const known = share === null ? "not known" : `${Math.round(100 * share)} % known`;
      place.setAttribute("aria-valuenow", bin + 1);
      place.setAttribute("aria-valuetext",
        `token ${firstToken() + 1} of ${figures.tokens}, ${known}`);
    }
    const firstToken = () => Math.ceil((bin * figures.tokens) / bins);
    function jump(to) {
      mark(to);
      go(pieceOf(firstToken()), false);
    }
    place.addEventListener("click", (event) => {
      const box = place.getBoundingClientRect();
      place.focus({ preventScroll: true });
      jump(Math.floor(((event.clientX - box.left) / box.width) * bins));
    });
    place.addEventListener("keydown", (event) => {
      const steps = {
        ArrowRight: bin + 1, ArrowUp: bin + 1, ArrowLeft: bin - 1, ArrowDown: bin - 1,
        PageUp: bin + 10, PageDown: bin - 10, Home: 0, End: bins - 1,
      };
      if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      jump(steps[event.key]);
    });
    place.addEventListener("blur", hide);

    // Which part of the text is on the screen.
    function tokenAt(y) {
      let low = 0, high = blocks.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (blocks[middle].getBoundingClientRect().top <= y) low = middle; else high = middle - 1;
      }
      const box = blocks[low].getBoundingClientRect();
      const share = Math.max(0, Math.min(1, (y - box.top) / Math.max(box.height, 1)));
      return starts[Math.min(starts.length - 1,
        firsts[low] + Math.floor(share * blocks[low].children.length))];
    }
    let waiting = false;
    function follow() {
      waiting = false;
      const bar = document.querySelector(".map").getBoundingClientRect().bottom;
      const first = tokenAt(bar), last = tokenAt(innerHeight);
      seen.hidden = last === first;
      seen.style.left = `${(100 * first) / figures.tokens}%`;
      seen.style.width = `${(100 * (last - first)) / figures.tokens}%`;
      if (document.activeElement !== place) mark(Math.floor((first * bins) / figures.tokens));
    }
    function soon() {
      if (!waiting) { waiting = true; requestAnimationFrame(follow); }
    }
    addEventListener("scroll", soon, { passive: true });
    addEventListener("resize", soon);
    mark(0);
    follow();
  }
})();
