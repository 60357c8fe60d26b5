"""The report in a browser: the list of answers, its filters, and that the page asks the network for nothing."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from fitcoach_tune.evaluate.page import render_page
from fitcoach_tune.functiongemma import Call
from tests.evaluate.reports import SLEEP, STEPS, WORDS, Reader, better, eight_rows, make_report, make_set, row, said

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor chromium-browser is on PATH")

OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr", "--v=0"),
    *("--hide-scrollbars", "--virtual-time-budget=2000", "--window-size=1280,900"),
]
NOWHERE = "--host-resolver-rules=MAP * ~NOTFOUND"  # the browser's own errands reach nothing either
POLICY = re.compile('<meta http-equiv="Content-Security-Policy"[^>]*>')


class Shown(Reader):
    """A page as the browser left it.

    Attributes:
        log: what the page wrote to the console, refused requests and errors included.
        counter: the line above the list of answers.
        answers: the ids of the listed answers' rows.
        title: the document's title.
    """

    def __init__(self, page: str, log: list[str]):
        super().__init__(page)
        self.log = log
        self.counter = re.search('id="counter"[^>]*>([^<]*)<', page)[1]
        self.answers = re.findall('<tr class="is-.*?<small>([^<]*)</small>', page)
        self.title = html.unescape(re.search("<title>([^<]*)</title>", page)[1])

    def choices(self, name: str) -> list[str]:
        """The values that a select offers."""
        start = next(i for i, (_, found) in enumerate(self.elements) if found.get("name") == name)
        options = itertools.takewhile(lambda element: element[0] == "option", self.elements[start + 1 :])
        return [found["value"] for _, found in options]


def browse(page: str, folder: Path, *options: str, fragment: str = "") -> subprocess.CompletedProcess:
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    options = (*OPTIONS, NOWHERE, f"--user-data-dir={folder / 'profile'}", *options)
    command = [BROWSER, *options, file.as_uri() + fragment]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)


def show(page: str, folder: Path, fragment: str = "") -> Shown:
    done = browse(page, folder, "--dump-dom", fragment=fragment)
    return Shown(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def after(page: str, script: str) -> str:
    """The page with something done to it once it stands; its own policy, which would refuse that, is taken out.

    The script may call `counter()` and `ids()`, what is listed, `go(fragment)`, which is to be awaited, and
    `tell(value)`, which puts the value into the title.
    """
    assert POLICY.search(page)
    helpers = """
      const counter = () => document.getElementById("counter").textContent;
      const ids = () => [...document.querySelectorAll("#list tbody tr small")].map((small) => small.textContent);
      const tell = (value) => { document.title = JSON.stringify(value); };
      const go = (fragment) => new Promise((arrived) => {
        addEventListener("hashchange", () => setTimeout(arrived), { once: true });
        location.hash = fragment;
      });
    """
    return POLICY.sub("", page).replace("</body>", f"<script>{helpers}(async () => {{{script}}})();</script></body>")


def listed(page: str, folder: Path, fragments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The counter and the ids of the rows that each fragment lists."""
    script = (
        f"const seen = []; for (const f of {json.dumps(fragments)}) {{ await go(f); seen.push([counter(), ids()]); }}"
    )
    shown = show(after(page, f"{script} tell(seen);"), folder)
    assert shown.log == []
    return [tuple(found) for found in json.loads(shown.title)]


@pytest.fixture(scope="module")
def report() -> str:
    """Eight rows and one harder set of four, on which tuned is right once."""
    hard = make_set([row(said(STEPS), WORDS)] * 3 + better(1), "hard/renamed", "Tools renamed")
    return render_page(*make_report(make_set(eight_rows()), hard))


# ------------------------------------------------------------------------------------------------ filters


STEPS_IDS = [f"test/{i}" for i in range(6)]
FOUND = {
    "#error=wrong_func_name": ("1 of 8 shown", ["test/6"]),
    "#error=wrong_func_name&tool=get_heart_rate": ("1 of 8 shown", ["test/6"]),
    "#error=wrong_func_name&tool=get_active_minutes": ("0 of 8 shown", []),
    "#error=right": ("6 of 8 shown", STEPS_IDS),
    "#model=base&error=no_call&q=NUMBER+3": ("1 of 8 shown", ["test/3"]),
    "#q=rows.jsonl:8": ("1 of 8 shown", ["test/7"]),
    "#change=worse": ("1 of 8 shown", ["test/7"]),
    "#change=better&error=any": ("6 of 8 shown", STEPS_IDS),
    "#wanted=get_steps&called=invented": ("1 of 8 shown", ["test/7"]),
    "#wanted=get_steps&called=get_heart_rate": ("1 of 8 shown", ["test/6"]),
    "#wanted=get_steps&called=no+call&model=base": ("7 of 8 shown", [f"test/{i}" for i in range(7)]),
    "#set=hard%2Frenamed": ("3 of 4 shown", [f"hard/renamed/{i}" for i in range(3)]),
    "#set=hard%2Frenamed&change=better&error=any": ("1 of 4 shown", ["hard/renamed/3"]),
    "#set=any&change=worse": ("4 of 12 shown", ["test/7", *(f"hard/renamed/{i}" for i in range(3))]),
    "#set=nonsense&error=nonsense": ("2 of 8 shown", ["test/6", "test/7"]),
}


def test_fragments_filter(report, tmp_path) -> None:
    assert dict(zip(FOUND, listed(report, tmp_path, list(FOUND)), strict=True)) == FOUND


@pytest.mark.parametrize(
    ("fragment", "counter", "answers"),
    [
        ("", "2 of 8 shown", ["test/6", "test/7"]),
        ("#error=wrong_func_name&tool=get_steps", "1 of 8 shown", ["test/6"]),
        ("#model=any&error=any&q=walking", "2 of 16 shown", ["test/7 · base", "test/7 · tuned"]),
    ],
)
def test_the_page_opens_as_its_fragment_says(report, tmp_path, fragment, counter, answers) -> None:
    page = show(report, tmp_path, fragment)
    assert page.log == []
    assert (page.counter, page.answers) == (counter, answers)
    assert page.choices("error") == ["mistakes", "any", "right", "invented_func_name", "no_call", "wrong_func_name"]
    assert page.choices("model") == ["any", "base", "tuned"]
    assert page.choices("set") == ["any", "test", "hard/renamed"]
    assert "get_sleep_metrics" in page.choices("tool")
    if not fragment:
        assert "only mistakes (2)" in page.text
        assert "calls another function (1)" in page.text
        assert "calls nothing, where a call is wanted (0)" in page.text


def test_choosing_writes_the_fragment_and_reset_empties_it(report, tmp_path) -> None:
    choose = """
      const form = document.getElementById("filters");
      const seen = [];
      for (const [name, value] of [["error", "any"], ["q", "walk?"]]) {
        form.elements[name].value = value;
        form.elements[name].dispatchEvent(new Event("input", { bubbles: true }));
        seen.push(location.hash, counter());
      }
      form.querySelector("[type=reset]").click();
      tell([...seen, location.hash, counter(), form.elements.q.value]);
    """
    page = show(after(report, choose), tmp_path)
    assert page.log == []
    expected = ["#error=any", "8 of 8 shown", "#q=walk%3F&error=any", "1 of 8 shown", "", "2 of 8 shown", ""]
    assert json.loads(page.title) == expected


def test_a_link_of_the_page_filters_and_its_chips_take_the_filter_away(report, tmp_path) -> None:
    follow = """
      addEventListener("hashchange", () => setTimeout(() => {
        const chips = () => [...document.querySelectorAll("#chips button")];
        const seen = [counter(), document.activeElement.textContent, ...chips().map((chip) => chip.textContent)];
        chips()[1].click();
        chips()[0].click();
        tell([...seen, counter(), chips().length]);
      }));
      document.querySelector("svg a").dispatchEvent(new MouseEvent("click", { bubbles: true }));
    """
    page = show(after(report, follow), tmp_path)
    assert page.log == []
    chips = ["wanted: get_steps ✕", "called: get_heart_rate ✕"]
    assert json.loads(page.title) == ["1 of 8 shown", "Every answer", *chips, "2 of 8 shown", 0]


# ------------------------------------------------------------------------------------------------ rows


def test_a_linked_row_is_open_and_shows_everything(report, tmp_path) -> None:
    page = show(report, tmp_path, "#id=test%2F7&error=any")
    assert page.answers == ["test/7"]
    assert page.counter == "1 of 8 shown"
    opened = next(found for tag, found in page.elements if tag == "button" and "aria-expanded" in found)
    assert opened["aria-expanded"] == "true"
    panel = next(cells[0] for cells in page.rows if len(cells) == 1 and cells[0].startswith("query "))
    for part in (
        "query How is my walking?",
        "wanted get_steps()",
        "called get_sleep_metrics()",
        "in detail get_sleep_metrics",
        "<start_function_call> call:get_sleep_metrics{} <end_function_call>",
        "base ✓ get_steps() open",
        "7 tools declared",
        "<start_of_turn> user",
        "took 0.50 s, 23 tokens",
        "from rows.jsonl:8",
    ):
        assert part in panel
    assert "declaration:get_steps" in panel


def test_long_lists_are_shown_in_portions(tmp_path) -> None:
    page = render_page(*make_report(make_set([row(WORDS, WORDS, f"row {i}") for i in range(250)])))
    ask = """
      const more = document.getElementById("more");
      const seen = [counter(), ids().length, more.textContent];
      more.click();
      seen.push(counter(), more.textContent, document.activeElement.textContent);
      more.click();
      tell([...seen, counter(), more.hidden]);
    """
    shown = show(after(page, ask), tmp_path)
    assert shown.log == []
    assert json.loads(shown.title) == [
        *("first 100 of 250 found, 250 in all", 100, "show 100 more"),
        *("first 200 of 250 found, 250 in all", "show 50 more", "row 100"),
        *("250 of 250 shown", True),
    ]
    assert shown.answers == [f"test/{i}" for i in range(250)]


def test_several_calls_are_told_apart(tmp_path) -> None:
    rows = [
        row(WORDS, said(STEPS, SLEEP), gold=[STEPS, Call("get_heart_rate", {})]),
        row(WORDS, said(STEPS), gold=[STEPS, SLEEP]),
        row(WORDS, said(STEPS, SLEEP), gold=[STEPS]),
        row(WORDS, "<start_function_call>oops", gold=[STEPS]),
        row(WORDS, said(STEPS), gold=[]),
    ]
    found = {
        "#wanted=get_heart_rate&called=get_sleeping_minutes": ["test/0"],
        "#wanted=get_sleeping_minutes&called=no+call": ["test/1"],
        "#wanted=no+call&called=get_sleeping_minutes": ["test/2"],
        "#wanted=get_steps&called=unparsable": ["test/3"],
        "#wanted=no+call&called=get_steps": ["test/4"],
        "#wanted=get_steps&called=get_sleeping_minutes": [],
    }
    page = render_page(*make_report(make_set(rows)))
    assert [ids for _, ids in listed(page, tmp_path, list(found))] == list(found.values())


@pytest.mark.parametrize(("n", "counter"), [(3, "0 of 3 shown: there are no mistakes"), (0, "0 of 0 shown")])
def test_without_mistakes_or_rows_it_says_so(tmp_path, n, counter) -> None:
    page = show(render_page(*make_report(make_set(better(n)))), tmp_path)
    assert page.counter == counter
    assert page.log == []


# ------------------------------------------------------------------------------------------------ safety


HOSTILE = "</script><img src=https://example.org/x.png onerror=alert(1)><script>document.title='owned'</script>"


def test_markup_in_answers_stays_text(tmp_path) -> None:
    rows = [row(HOSTILE, HOSTILE, f"{HOSTILE} כמה צעדים? 🙂 \u2028 \u202e")]
    page = show(render_page(*make_report(make_set(rows))), tmp_path, "#id=test/0")
    assert page.log == []
    assert page.all("img") == []
    assert len(page.all("script")) == 2
    assert page.text.count("onerror=alert(1)") >= 4  # query, prompt, raw output and the row that got neither
    assert "כמה צעדים? 🙂" in page.text


def test_the_page_would_refuse_what_leads_out_even_if_it_broke_in(report, tmp_path) -> None:
    foreign = [
        '<img src="https://example.org/x.png">',
        "<script>document.title = 'owned'</script>",
        "<style>@import 'https://example.org/x.css';</style>",
    ]
    page = show(report.replace("</body>", f"{''.join(foreign)}</body>"), tmp_path)
    assert len(page.log) == len(foreign)
    assert all("Content Security Policy" in line for line in page.log)
    assert page.title != "owned"
    assert page.counter == "2 of 8 shown"


# ------------------------------------------------------------------------------------------------ looks


def test_it_is_drawn_in_light_and_dark(report, tmp_path) -> None:
    from matplotlib.image import imread

    def drawn(*options: str) -> tuple[int, float]:
        """How many shades of red it has, and its mean brightness."""
        picture = tmp_path / "page.png"
        browse(report, tmp_path, f"--screenshot={picture}", *options)
        pixels = imread(picture)[..., :3]
        assert pixels.shape[:2] == (900, 1280)
        return len(set(pixels[..., 0].ravel().tolist())), float(pixels.mean())

    shades, brightness = drawn()
    assert shades > 50
    assert brightness > 0.8
    shades, brightness = drawn("--blink-settings=preferredColorScheme=0")
    assert shades > 50
    assert brightness < 0.3
