// The list of answers: filters, whose state is the page's fragment, and rows that open. Text enters the page as text
// only, never as markup.
(() => {
  "use strict";

  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 100;
  const LONG = 160;
  const START = { q: "", error: "mistakes", tool: "", ...data.main, change: "", wanted: "", called: "", id: "" };
  const CHIPS = { id: "row", wanted: "wanted", called: "called" };
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const body = list.tBodies[0];
  const counter = document.getElementById("counter");
  const chips = document.getElementById("chips");
  const more = document.getElementById("more");
  const control = new RegExp(`(${[...data.control].join("|")}|\\n)`); // no character of a control token is special

  let state = { ...START };
  let pool = []; // the answers of the chosen model and set
  let found = []; // those of them that pass the other filters
  let shown = 0;

  function element(tag, properties, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (name in made) made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  // ------------------------------------------------------------------------------------------------ answers

  const answersOf = data.rows.map(() => []);
  for (const answer of data.answers) {
    const row = data.rows[answer.row];
    const named = new Set([...row.gold.flat(), ...answer.calls].map(([name]) => name));
    answer.about = row;
    answer.named = named;
    answersOf[answer.row].push(answer);
  }

  const changes = new Map(
    Object.entries(data.changes).map(([set, { worse, better }]) => [
      set,
      { worse: new Set(worse), better: new Set(better) },
    ]),
  );

  // The names that are left when each of the others has taken one of its kind away.
  function without(names, others) {
    const left = [...others];
    return names.filter((name) => {
      const place = left.indexOf(name);
      if (place >= 0) left.splice(place, 1);
      return place < 0;
    });
  }

  // Whether an answer belongs to a cell of the confusion matrix off its diagonal.
  function confuses(answer, wanted, called) {
    const gold = answer.about.gold[0].map(([name]) => name);
    const calls = answer.calls.map(([name]) => name);
    const declared = data.toolsets[answer.about.tools];
    const { none, invented, unparsable } = data.cells;
    const lacking = without(gold, calls);
    const over = without(calls, gold).map((name) => (declared.includes(name) ? name : invented));
    const nothing = answer.error === "decoder_failed" ? unparsable : none;
    if (calls.length < gold.length || !calls.length) over.push(nothing);
    if (calls.length > gold.length || !gold.length) lacking.push(none);
    return (!wanted || lacking.includes(wanted)) && (!called || over.includes(called));
  }

  function hasText(answer, words) {
    answer.words ??= [answer.about.query, answer.raw, answer.about.id, answer.about.origin, answer.detail]
      .join("\n")
      .toLowerCase();
    return answer.words.includes(words);
  }

  function changed(answer, change) {
    return Boolean(changes.get(answer.about.set)?.[change].has(answer.about.id));
  }

  const isKind = {
    any: () => true,
    mistakes: (answer) => !answer.right,
    right: (answer) => answer.right,
  };

  function ofKind(answer, error) {
    return isKind[error] ? isKind[error](answer) : answer.error === error;
  }

  // ------------------------------------------------------------------------------------------------ state

  function options(name, pairs) {
    form.elements[name].replaceChildren(...pairs.map(([value, text]) => element("option", { value }, text)));
    form.elements[name].parentElement.hidden = pairs.length < 2;
  }

  function makeFilters() {
    const kinds = Object.keys(data.errors).filter((key) => data.answers.some((answer) => answer.error === key));
    const names = new Set([...data.toolsets.flat(), ...data.answers.flatMap((answer) => [...answer.named])]);
    const models = new Set(data.answers.map((answer) => answer.model)).add(data.main.model);
    options("error", ["mistakes", "any", "right", ...kinds].map((key) => [key, key]));
    options("tool", [["", "any"], ...[...names].sort().map((name) => [name, name])]);
    options("model", [["any", "any"], ...[...models].map((name) => [name, name])]);
    options("set", [["any", "any"], ...data.sets]);
    const some = changes.size > 0;
    options("change", [["", "any"], ...(some ? [["worse", "got worse"], ["better", "got better"]] : [])]);
    if (data.sets.length < 2) form.elements.set.parentElement.hidden = true;
    if (models.size < 2) form.elements.model.parentElement.hidden = true;
  }

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    state = { ...START };
    for (const name of Object.keys(START)) {
      const value = given.get(name);
      const field = form.elements[name];
      const known = !field || !field.options || [...field.options].some((option) => option.value === value);
      if (value !== null && known) state[name] = value;
    }
    fill();
  }

  function fill() {
    for (const [name, value] of Object.entries(state)) if (form.elements[name]) form.elements[name].value = value;
  }

  function write() {
    const changes = Object.entries(state).filter(([name, value]) => value !== START[name]);
    try {
      history.replaceState(null, "", `#${new URLSearchParams(changes)}`);
    } catch {
      // A page inside another page's frame may not change its address; the filters work without.
    }
  }

  // ------------------------------------------------------------------------------------------------ the list

  function apply() {
    pool = data.answers.filter(
      (answer) =>
        (state.set === "any" || answer.about.set === state.set) &&
        (state.model === "any" || answer.model === state.model),
    );
    const words = state.q.trim().toLowerCase();
    found = pool.filter(
      (answer) =>
        ofKind(answer, state.error) &&
        (!state.tool || answer.named.has(state.tool)) &&
        (!state.change || changed(answer, state.change)) &&
        (!state.id || answer.about.id === state.id) &&
        (!(state.wanted || state.called) || confuses(answer, state.wanted, state.called)) &&
        (!words || hasText(answer, words)),
    );
    shown = 0;
    body.replaceChildren();
    nameKinds();
    showChips();
    grow();
    if (state.id && found.length) body.querySelector("button").click();
  }

  function grow(focus = false) {
    const total = pool.length;
    const next = found.slice(shown, shown + PAGE);
    const rows = next.map(makeRow);
    body.append(...rows);
    shown += next.length;
    const left = found.length - shown;
    list.hidden = !found.length;
    more.hidden = !left;
    more.textContent = `show ${Math.min(left, PAGE)} more`;
    const all = left ? `first ${shown} of ${found.length} found, ${total} in all` : `${shown} of ${total} shown`;
    const none = state.error === "mistakes" && total && pool.every((answer) => answer.right);
    counter.textContent = none ? `${all}: there are no mistakes` : all;
    if (focus && rows.length) rows[0].querySelector("button").focus();
  }

  function nameKinds() {
    const names = { mistakes: "only mistakes", any: "all answers", right: "right answers", ...data.errors };
    for (const option of form.elements.error.options) {
      const count = pool.filter((answer) => ofKind(answer, option.value)).length;
      option.textContent = `${names[option.value]} (${count})`;
    }
  }

  function showChips() {
    const present = Object.entries(CHIPS).filter(([name]) => state[name]);
    chips.replaceChildren(
      ...present.map(([name, label]) => {
        const chip = element("button", { type: "button" }, `${label}: ${state[name]} ✕`);
        chip.setAttribute("aria-label", `remove the filter ${label}: ${state[name]}`);
        chip.onclick = () => {
          state[name] = "";
          write();
          apply();
        };
        return chip;
      }),
    );
  }

  function callText([name, given]) {
    return `${name}(${given})`;
  }

  function shortened(text) {
    return text.length > LONG ? `${text.slice(0, LONG)}…` : text;
  }

  function callsCell(calls, otherwise) {
    if (!calls.length) return element("em", null, otherwise);
    return element("span", { className: "calls" }, ...calls.map((call) => element("code", null, shortened(callText(call)))));
  }

  function saidCell(answer) {
    if (answer.error === "decoder_failed") return element("em", null, "cannot be parsed");
    return callsCell(answer.calls, answer.says ? "words, no call" : "nothing");
  }

  function cell(label, ...children) {
    const made = element("td", null, ...children);
    made.dataset.label = label;
    return made;
  }

  function makeRow(answer, place) {
    const row = answer.about;
    const button = element("button", { type: "button", className: "open" });
    button.setAttribute("aria-expanded", "false");
    button.append(element("bdi", { className: "query" }, shortened(row.query) || "(empty)"));
    const about = [row.id, ...(state.model === "any" ? [answer.model] : [])].join(" · ");
    const wrong = answer.right ? element("span", { className: "right" }, "✓ right") : element("span", { className: "wrong" });
    if (!answer.right) {
      wrong.append(data.errors[answer.error] || answer.error);
      if (answer.detail) wrong.append(element("bdi", { className: "detail" }, shortened(answer.detail)));
    }
    const made = element(
      "tr",
      { className: answer.right ? "is-right" : "is-wrong" },
      cell("query", button, element("small", null, about)),
      cell("wanted", callsCell(row.gold[0], "words, no call"), ...alternatives(row)),
      cell("called", saidCell(answer)),
      cell("what is wrong", wrong),
    );
    const id = `answer-${shown + place}`;
    let panel = null;
    button.setAttribute("aria-controls", id);
    const toggle = () => {
      if (!panel) {
        panel = element("tr", { className: "panel", id, hidden: true }, element("td", { colSpan: 4 }, details(answer)));
        made.after(panel);
      }
      panel.hidden = !panel.hidden;
      button.setAttribute("aria-expanded", String(!panel.hidden));
    };
    made.onclick = (event) => {
      const chosen = event.target.closest("a") || (!event.target.closest("button") && String(getSelection()));
      if (!chosen) toggle();
    };
    return made;
  }

  function alternatives(row) {
    const others = row.gold.length - 1;
    return others ? [element("small", null, `or ${others} other${others > 1 ? "s" : ""}`)] : [];
  }

  // ------------------------------------------------------------------------------------------------ one answer

  // Text with its control tokens and line ends made visible.
  function raw(text) {
    const parts = text.split(control).filter(Boolean);
    const marked = parts.map((part, i) => {
      if (part === "\n") return element("span", null, element("span", { className: "token" }, "↵"), "\n");
      return data.control.includes(part) ? element("span", { className: "token" }, part) : part;
    });
    return element("pre", { dir: "auto", tabIndex: 0 }, ...(marked.length ? marked : [element("em", null, "nothing")]));
  }

  function details(answer) {
    const row = answer.about;
    const items = [];
    const add = (name, ...content) => items.push(element("dt", null, name), element("dd", null, ...content));
    add("query", element("bdi", { className: "whole" }, row.query));
    row.gold.forEach((gold, i) => add(i ? "or wanted" : "wanted", wholeCalls(gold, "an answer in words, no call")));
    add("called", wholeCalls(answer.calls, answer.error === "decoder_failed" ? "cannot be parsed" : "nothing"));
    if (answer.detail) add("in detail", element("bdi", { className: "whole" }, answer.detail));
    add("raw output", raw(answer.raw));
    const others = answersOf[answer.row].filter((other) => other !== answer);
    for (const other of others) add(other.model, other.right ? "✓ " : "✗ ", saidCell(other), " ", link(other, "open"));
    const head = data.heads[row.head];
    const tools = data.toolsets[row.tools];
    if (head) {
      const summary = `${head.length} characters before it, ${tools.length} tool${tools.length === 1 ? "" : "s"} declared`;
      add("prompt", element("details", null, element("summary", null, summary), raw(head)), raw(row.tail));
    } else add("prompt", raw(row.tail));
    const end = answer.stopped ? "" : "; cut off at the token limit";
    add("took", `${answer.seconds.toFixed(2)} s, ${answer.tokens} token${answer.tokens === 1 ? "" : "s"}${end}`);
    add("from", element("bdi", null, row.origin), " ", link(answer, "link to this answer"));
    return element("dl", { className: "facts" }, ...items);
  }

  function wholeCalls(calls, otherwise) {
    if (!calls.length) return element("em", null, otherwise);
    return element("span", { className: "calls whole" }, ...calls.map((call) => element("code", null, callText(call))));
  }

  function link(answer, text) {
    const where = { id: answer.about.id, set: answer.about.set, model: answer.model, error: "any" };
    return element("a", { href: `#${new URLSearchParams(where)}` }, text);
  }

  // ------------------------------------------------------------------------------------------------ beginning

  function arrive() {
    if (!location.hash.includes("=")) return;
    read();
    apply();
    const heading = document.querySelector("#answers h2");
    heading.scrollIntoView({ behavior: "instant" });
    heading.focus({ preventScroll: true });
  }

  makeFilters();
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    state[event.target.name] = event.target.value;
    write();
    apply();
  });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    state = { ...START };
    fill();
    write();
    apply();
  });
  more.onclick = () => grow(true);
  addEventListener("hashchange", arrive);
  read();
  apply();
  arrive();
})();
