"""docs/viewer.html in a real browser: it shows what the trace says, as text, by keyboard, at any width, and touches only what changed."""

import base64
import contextlib
import hashlib
import json
import re

import pytest

import browser as browsers
import dllm
from conftest import MASK, random_model, random_prompt
from lab import trace as traces
from shared import LENGTHS
from test_trace import WRONG, Letters

needs_browser = pytest.mark.skipif(browsers.PROGRAM is None, reason="needs a chromium binary on the PATH")
EVIL = [
    "<script>alert(1)</script>",
    "</script>",
    "<!--",
    "<img src=x onerror=document.title='hit'>",
    "\x1b[2J",
    "\u202e",
    '"',
    "\u2028",
    "&lt;",
]


class Evil(Letters):
    """A tokenizer whose words are markup and escape sequences."""

    def decode(self, ids, skip_special_tokens=True):
        return EVIL[ids[0] % len(EVIL)]


@pytest.fixture(scope="module")
def browser():
    with contextlib.ExitStack() as stack:
        try:
            browser = stack.enter_context(browsers.Browser())
        except RuntimeError as error:  # some systems have a program of this name that only asks to install another
            pytest.skip(str(error))
        yield browser


@pytest.fixture
def shown(browser, tmp_path):
    """Open a page of traces and hand back the browser."""

    def show(*runs, fragment="", **how):
        traces.write_page(str(tmp_path / "page.html"), list(runs))
        browser.events.clear()
        browser.open(tmp_path / "page.html", fragment, **how)
        return browser

    return show


def a_run(tmp_path, strategy="fast-dllm", tokenizer=Letters, prompt=7, lengths=LENGTHS, template=None, **settings) -> list[dict]:
    lengths = lengths if template is None else {"block_length": lengths["block_length"]}
    model = random_model(0, max_sequence_length=2048)
    canvas = dllm.prepare(model, random_prompt(0, prompt), strategy, lengths | settings, template)
    path = tmp_path / f"{strategy}.jsonl"
    for _ in traces.trace(dllm.stream(canvas), canvas, tokenizer(), str(path), strategy, settings):
        pass
    return traces.read(path)


CELLS = """[...document.querySelectorAll('.run:nth-child(%d) .cell')].map(
    (cell) => [cell.className.split(' '), cell.firstChild.textContent, cell.lastChild.textContent, cell.style.backgroundColor !== ''])"""


def texts(run, canvas) -> list[str]:
    told = {i: text for record in run for i, text in record["tokens"].items()}
    return ["\u00b7" if i == MASK else "\u220e" if i == 38 else told[str(i)] for i in canvas]


def complaints(browser) -> list:
    """Exceptions, console errors and violations of the page's policy since it was opened."""
    browser.run("new Promise((done) => setTimeout(done, 50))")
    return [event for event in browser.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]


# --- without a browser ---------------------------------------------------------------------------------------------------------------------


def test_the_page_allows_its_own_script_and_no_other():
    """Would catch a changed script that the browser then refuses to run. To mend it, paste the hash that this test expects."""
    page = traces.VIEWER.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    expected = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.search(r"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-([^']*)'", page)[1] == expected


def test_the_page_needs_nothing_from_elsewhere():
    """Would catch a font, a library or a picture from a server, and text that becomes markup."""
    page = traces.VIEWER.read_text(encoding="utf-8")
    assert page.count(traces.EMPTY) == 1
    assert not re.search(
        r"https?:|src=|href=|@import|url\(|fetch\(|XMLHttp|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page
    )


def test_the_gallery_is_small_and_can_be_opened():
    """Would catch a trace in docs/ that the viewer of today refuses, and pictures that weigh more than the code."""
    files = list((traces.VIEWER.parent / "gallery").iterdir())
    assert sum(file.stat().st_size for file in files) < 400_000
    for file in files:
        assert file.suffix != ".jsonl" or len(traces.read(file)) > 2
        assert file.suffix != ".svg" or not re.search(r"url\(.https?:|<script|<image", file.read_text(encoding="utf-8"))


# --- what it shows -------------------------------------------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize(
    "strategy, settings",
    [
        ("llada", {}),
        ("fast-dllm", {"cache": "dual", "threshold": 0.5}),
        ("streaming", {"window_size": 4}),
        ("d2f", {"skip_threshold": 0.5}),
        ("ar", {"block_length": 1}),
        ("freedave", {}),
        ("fast-dllm", {"template": [1, MASK, 2, *[MASK] * 9, *[3] * 8, MASK, 4]}),
    ],
)
def test_the_page_shows_what_the_trace_says(shown, tmp_path, strategy, settings):
    """Would catch a canvas, a step of writing, a highlight or a cache state that is another forward's."""
    run = a_run(tmp_path, strategy, **settings)
    page = shown(run)
    before = settings.get("template", [MASK] * 24)
    canvases = [run[0]["prompt"] + before + [38] * (24 - len(before)), *traces.replay(run)]
    written: dict[int, int] = {}
    proposed: dict[int, list] = {}  # what was last proposed, and how surely
    for number, canvas in enumerate(canvases):
        cells = page.run(f"show({number}), {CELLS % 1}")
        record = run[number] if number else None
        written |= {slot: number for slot, _ in record["writes"]} if record else {}
        proposed |= {slot: guess for slot, *guess, _ in record["candidates"]} if record else {}
        guesses = {slot: proposed[slot] for slot in proposed if canvas[slot] == MASK}
        assert [cell[1] for cell in cells] == texts(run, [guesses.get(slot, [canvas[slot]])[0] for slot in range(31)])
        small = {slot: f"{sure:.2f}".removeprefix("0") for slot, (_, sure) in guesses.items()}
        assert [cell[2] for cell in cells] == [small.get(slot, str(written.get(slot, ""))) for slot in range(31)]
        assert {slot for slot in range(31) if "guess" in cells[slot][0]} == set(guesses)
        assert [slot for slot in range(31) if "now" in cells[slot][0]] == ([slot for slot, _ in record["writes"]] if record else [])
        for slot, (classes, *_) in enumerate(cells):
            inside = {name: record and any(start <= slot < end for start, end in record[name]) for name in ("query", "visible")}
            cached = "frozen" if run[0]["strategy"]["exact"] else "stale"
            role = "fresh" if inside["query"] else cached if inside["visible"] else "pruned"
            assert [name for name in classes if name in ("fresh", "stale", "frozen", "pruned")] == ([role] if record else [])
    assert complaints(page) == []


@needs_browser
def test_what_is_taken_back_is_a_mask_again(shown, tmp_path):
    """Would catch a viewer in which a token, once written, stays."""
    run = a_run(tmp_path, "llada")
    slot, token = run[1]["writes"][0]
    run[2]["unwrites"].append([slot, MASK])
    run[3]["unwrites"].append([slot, token])
    page = shown(run)
    (text,) = texts(run, [token])
    sure = f"{next(c[2] for c in run[1]['candidates'] if c[0] == slot):.2f}".removeprefix("0")
    for forward, when, taken in ((1, "1", False), (2, sure, True), (3, "3", True), (4, "3", False)):
        classes, *cell = page.run(f"show({forward}), {CELLS % 1}")[slot]
        assert (cell[:2], "taken" in classes, "guess" in classes) == ([text, when], taken, forward == 2)


@needs_browser
def test_markup_and_escapes_in_tokens_are_text(shown, tmp_path):
    """Would catch a model that writes itself into the page."""
    run = a_run(tmp_path, "llada", Evil, prompt=60)  # long enough to hold them all
    page = shown(run, fragment="#step=24&slot=9")
    count = page.run("document.querySelectorAll('script, img').length")
    text = page.run("document.querySelector('#runs').textContent")
    assert count == 2 and complaints(page) == [] and not page.run("document.title").startswith("hit")
    assert all(each in text for each in EVIL if each.isprintable()) and not re.search("[\x1b\u202e\u2028]", text)


@needs_browser
def test_the_likeliest_tokens_of_a_slot_are_shown_on_hover_focus_and_tap(shown, tmp_path):
    """Would catch an inspector of another slot or forward, and one that only a mouse can reach."""
    run = a_run(tmp_path, "llada")
    page = shown(run, fragment="#step=3")
    for event in ("new MouseEvent('mouseenter')", "new FocusEvent('focus')", "new MouseEvent('click')"):
        for slot, _, confidence, top in run[3]["candidates"][:4]:
            page.run(f"views[0].cells[{slot}].dispatchEvent({event})")
            assert f"slot {slot}: " in page.run("$('about').textContent") and f"confidence {confidence:.3f}" in page.run(
                "$('about').textContent"
            )
            assert page.run("[...$('top').children].map((line) => line.firstChild.textContent)") == [json.dumps(f"<{i}>") for i, _ in top]


@needs_browser
def test_it_works_by_keyboard(shown, tmp_path):
    """Would catch a page for the mouse alone: every control and every token is reached, and focus can be seen."""
    run = a_run(tmp_path, "llada")
    page = shown(run)
    position = lambda: page.run("$('position').textContent")
    for keys, expected in (
        (["ArrowRight"] * 3, 3),
        (["ArrowLeft"], 2),
        (["End"], 24),
        (["ArrowRight"], 24),
        (["Home"], 0),
        (["ArrowLeft"], 0),
    ):
        page.press(*keys)
        assert position() == f"{expected} of 24"
    page.press(" ")
    assert page.run("$('play').textContent") == "Pause"
    page.press(" ")
    assert page.run("$('play').textContent") == "Play"
    page.run("show(3)")
    reached = []
    while (reached or [""])[-1] != "cell" and len(reached) < 12:
        page.press("Tab")
        reached.append(page.run("document.activeElement.id || 'cell'"))
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == ["play", "speed", "step", "what-if", "cell"]
    assert "slot 7:" in page.run("$('about').textContent")
    page.press("ArrowDown", "ArrowDown", "ArrowUp")
    assert "slot 8:" in page.run("$('about').textContent") and position() == "3 of 24"


@needs_browser
def test_two_runs_stand_side_by_side_and_their_first_difference_is_found(shown, tmp_path):
    """Would catch a jump to the wrong forward, and one run whose end stops the other."""
    one, two = a_run(tmp_path, "llada"), a_run(tmp_path, "llada", steps=12)
    same = a_run(tmp_path, "llada")
    same[5]["writes"][0][1] = 3
    page = shown(one, same)
    page.run("$('difference').click()")
    assert page.run("$('position').textContent") == "5 of 24"
    assert [slot for slot, cell in enumerate(page.run(CELLS % 2)) if "differs" in cell[0]] == [same[5]["writes"][0][0]]
    assert page.run("$('verdict').textContent") == "they end with different answers"
    page = shown(one, two, fragment="#step=24")
    canvases = [list(traces.replay(run)) for run in (one, two)]
    assert [[cell[1] for cell in page.run(CELLS % n)] for n in (1, 2)] == [
        texts(run, canvas[-1]) for run, canvas in zip((one, two), canvases)
    ]
    pairs = [(canvases[0][at], canvases[1][min(at, 11)]) for at in range(24)]
    differ = [at for at, pair in enumerate(pairs, start=1) if any(a != b and MASK not in (a, b) for a, b in zip(*pair))]
    assert page.run("$('difference').textContent") == (f"First difference: {differ[0]}" if differ else "No difference")


@needs_browser
def test_runs_that_end_equal_say_so(shown, tmp_path):
    """Would catch a first difference where one run has only not written yet what the other has, and a verdict on runs that have not ended."""
    one, two = a_run(tmp_path, "llada"), a_run(tmp_path, "llada", steps=12)
    assert list(traces.replay(one))[0] != list(traces.replay(two))[0]
    two[1:] = [record | {"writes": [[slot, 3] for slot, _ in record["writes"]]} for record in two[1:]]
    one[1:] = [record | {"writes": [[slot, 3] for slot, _ in record["writes"]]} for record in one[1:]]
    says = "[$('difference').disabled, $('difference').textContent, $('verdict').textContent]"
    assert shown(one, two).run(says) == [True, "No difference", "both end with the same answer"]
    assert shown(one, two[:5]).run(says) == [True, "No difference", "not both have ended"]
    assert shown(one).run("[$('difference').hidden, $('verdict').textContent]") == [True, ""]
    # behind the end of an answer nothing counts
    slots = {slot: record for record in one[1:] for slot, _ in record["writes"]}
    ended = json.loads(json.dumps(one))
    for slot, token in ((15, 37), (20, 4)):
        for record in ended[1:]:
            record["writes"] = [[s, token if s == slot else t] for s, t in record["writes"]]
    other = json.loads(json.dumps(ended))
    for record in other[1:]:
        record["writes"] = [[s, 5 if s == 20 else t] for s, t in record["writes"]]
    for run in (ended, other):
        run[0]["special"]["ends"] = [38, 37]
    assert len(slots) == 24 and shown(ended, other).run("$('verdict').textContent") == "both end with the same answer"


@needs_browser
def test_the_heading_says_what_sets_two_runs_apart(shown, tmp_path):
    """Would catch two runs of one strategy under the same heading, and a page that does not say what was asked and answered."""
    one, two = a_run(tmp_path, "llada"), a_run(tmp_path, "llada", steps=12)
    one[0]["question"], two[-1]["answer"] = "<b>What</b>\u202e\nis it?", "\u05e9\u05dc\u05d5\u05dd\x1b[2J"
    page = shown(one, two)
    heading = "[...document.querySelectorAll('h2')].map((h) => [h.textContent, h.querySelectorAll('.unlike').length])"
    assert page.run(heading) == [["A: llada  steps none", 1], ["B: llada  steps 12", 1]]
    said = page.run("[...document.querySelectorAll('.said span')].map((said) => said.textContent)")
    assert said == [
        "<b>What</b>\ufffd\nis it?",
        one[-1]["answer"],
        "".join(texts(two, two[0]["prompt"])),
        "\u05e9\u05dc\u05d5\u05dd\ufffd[2J",
    ]
    del one[-1]["answer"], two[-1]
    assert shown(one).run(heading) == [["llada", 0]]
    said = shown(two).run("document.querySelectorAll('.said span')[1].textContent")  # of a run that was killed
    assert said == "".join(texts(two, list(traces.replay(two))[-1][7:])).split("\u220e")[0]


@needs_browser
def test_every_end_token_ends_an_answer_and_none_a_prompt(shown, tmp_path):
    """Would catch a turn's end inside the prompt that is drawn as the end of the answer, or one in the answer that is not."""
    run = a_run(tmp_path, "llada")
    token = run[-1]["writes"][0][1]
    run[0]["prompt"][2] = token
    run[0]["special"]["ends"] = [38, token]
    cells = shown(run, fragment="#step=24").run(CELLS % 1)
    assert cells[2][1] == f"<{token}>" and cells[run[-1]["writes"][0][0]][1] == "\u220e"
    del run[0]["special"]["ends"]  # of before there were several
    assert shown(run, fragment="#step=24").run(CELLS % 1)[run[-1]["writes"][0][0]][1] == f"<{token}>"


@needs_browser
def test_a_mask_is_titled_as_one_and_a_proposal_by_its_text(shown, tmp_path):
    """Would catch an inspector that calls a mask by the name of its token, and one that hides what it would have become."""
    run = a_run(tmp_path, "llada")
    page = shown(run, fragment="#step=1")
    slot, token, confidence, _ = next(c for c in run[1]["candidates"] if c[0] not in [slot for slot, _ in run[1]["writes"]])
    page.run(f"views[0].cells[{slot}].click()")
    assert page.run("$('about').textContent") == f'slot {slot}: a mask; "<{token}>" proposed now, confidence {confidence:.3f}'
    page.run("views[0].cells[30].click()")
    assert page.run("$('about').textContent") == "slot 30: a mask"


@needs_browser
def test_another_threshold_marks_what_this_forward_would_change(shown, tmp_path):
    """Would catch marks that are not what the rule would do, and a label that promises a decode."""
    run = a_run(tmp_path, "fast-dllm", cache="none", threshold=0.5)
    for threshold in (0.3, 0.5, 0.7, 1):
        page = shown(run, fragment=f"#step=2&threshold={threshold}")
        candidates, now = run[2]["candidates"], {slot for slot, _ in run[2]["writes"]}
        would = {slot for slot, _, c, _ in candidates if c >= threshold} or {max(candidates, key=lambda c: c[2])[0]}
        cells = page.run(CELLS % 1)
        assert {slot for slot, cell in enumerate(cells) if "more" in cell[0] and cell[2] == "+"} == would - now
        assert {slot for slot, cell in enumerate(cells) if "less" in cell[0] and cell[2] == "\u2212"} == now - would
        assert "the model is not run again" in page.run("$('effect').textContent")


@needs_browser
@pytest.mark.parametrize("width", [320, 400, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_window_and_follows_the_colour_scheme(shown, tmp_path, width, dark):
    """Would catch a page that scrolls sideways on a phone, and dark text on a dark page."""
    run = a_run(tmp_path, "llada")
    run[0]["tokens"]["3"] = "supercalifragilistic" * 5
    page = shown(run, run, fragment="#step=20", width=width, dark=dark)
    assert page.run("document.documentElement.scrollWidth") == width
    ink, paper = (
        sum(map(int, re.findall(r"\d+", page.run(f"getComputedStyle(document.body).{name}"))[:3])) for name in ("color", "backgroundColor")
    )
    assert (ink > paper + 400) if dark else (paper > ink + 400)


@needs_browser
def test_a_canvas_of_1024_tokens_does_not_lag(shown, tmp_path):
    """Would catch a page that is drawn anew at every step: one that writes a token changes only that token's cell."""
    run = a_run(tmp_path, "llada", prompt=64, lengths={"gen_length": 960, "block_length": 960}, steps=24)
    page = shown(run, run)
    assert page.run("document.querySelectorAll('.run:first-child .cell').length") == 1024
    steps = "for (let i = 1; i <= 24; i++) show(i)"
    took = page.run(f"(() => {{ const began = performance.now(); {steps}; return performance.now() - began }})()") / 24
    assert took < 150  # ms a step, for two canvases, on a busy machine; about 10 on an idle one
    for record in run[1:]:  # the same proposals in every forward: all that changes is what is written
        record["candidates"] = run[1]["candidates"]
    page = shown(run)
    watched = "new MutationObserver((all) => all.forEach((m) => changed.add(m.target.closest?.('.cell'))))"
    page.run(f"show(10); changed = new Set(); {watched}.observe($('runs'), {{subtree: true, attributes: true}})")
    page.run("new Promise((done) => { show(11); setTimeout(done, 50) })")
    assert page.run("changed.size") <= len(run[10]["writes"]) + len(run[11]["writes"])


# --- files ---------------------------------------------------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize(
    "line, damage",
    [
        (0, {"gen_length": "16"}),
        (0, {"gen_length": 10**9}),
        (0, {"block_length": 10**9}),
        (0, {"given": [[2, 1]]}),
        (0, {"given": [[9]]}),
        (3, {"writes": [[31, 1]]}),
        (3, {"writes": [[-1, 1]]}),
        (3, {"query": [[0, 32]]}),
        (3, {"candidates": [[8, 1, "<b>", []]]}),
        (3, {"ms": None}),
    ],
)
def test_a_damaged_trace_in_the_page_is_told(shown, tmp_path, line, damage):
    """Would catch an empty page, and slots that do not exist; the control is the same page without the damage."""
    run = a_run(tmp_path, "llada")
    assert shown(run).run("$('problem').hidden") and not shown(run).run("$('controls').hidden")
    run[line] |= damage
    page = shown(run)
    assert page.run("$('problem').textContent") == f"a trace in this page is damaged: line {line + 1} is not a whole record"
    assert not page.run("$('problem').hidden") and page.run("$('controls').hidden")


@needs_browser
def test_the_page_takes_nothing_on_trust(shown, tmp_path):
    """Would catch a field that the reader refuses and the page does not, or the other way round."""
    run = a_run(tmp_path, "llada", prompt=3)
    page = shown(run)
    parse = "(() => { try { return parse(%s, 'a').forwards.length; } catch (error) { return error.message; } })()"
    for number, fields in WRONG.items():
        for field, values in fields.items():
            for value in values:
                records = [record | {field: value} if i == number else record for i, record in enumerate(run)]
                said = page.run(parse % json.dumps("".join(json.dumps(record) + "\n" for record in records)))
                assert str(said).startswith("a is no trace, or a damaged one: "), (field, value, said)
                assert field == "version" or said.endswith(f": line {number + 1} is not a whole record"), (field, value, said)
    for text, said in (
        ("", "its first line is not the header of one"),
        (json.dumps(run[0] | {"gen_length": 2**14}) + "\n", "a canvas of 16387 slots: a page draws at most 16384"),
        ("null\n", "its first line is not the header of one"),
        ("[" * 100_000 + "\n", "its first line is not the header of one"),
        (json.dumps(run[0]) + "\n\n" + json.dumps(run[1]) + "\n", "line 2 is not a whole record"),
    ):
        assert page.run(parse % json.dumps(text)) == f"a is no trace, or a damaged one: {said}"
    whole = "".join(json.dumps(record) + "\n" for record in run)
    for torn in ("", "null", "[]", "5", '{"nfe":', '{"nfe": 1e999}', "\ufffd"):  # what may stand behind the last end of line
        assert page.run(parse % json.dumps(whole + torn)) == 24


@needs_browser
def test_alone_it_says_how_to_make_a_trace_and_opens_files(browser, tmp_path):
    """Would catch an empty page, a picker that takes nothing, and silence about a file that is no trace."""
    run = a_run(tmp_path, "llada")
    (tmp_path / "no.jsonl").write_text("<b>hello</b>\n")
    whole = (tmp_path / "llada.jsonl").read_text()
    (tmp_path / "wild.jsonl").write_text(whole.replace('"writes":[[', '"writes":[[999,1],[', 1))
    browser.open(traces.VIEWER)
    assert "--trace one.jsonl" in browser.run("document.body.innerText") and browser.run("$('controls').hidden")

    def choose(*names):
        picker = browser.call("Runtime.evaluate", expression="$('files')")["result"]["objectId"]
        browser.call("DOM.setFileInputFiles", files=[str(tmp_path / name) for name in names], objectId=picker)
        browser.run("new Promise((done) => setTimeout(done, 200))")

    (tmp_path / "long.jsonl").write_text(whole.replace('"block_length":8', '"block_length":"8"'))
    for name in ("no.jsonl", "wild.jsonl", "long.jsonl"):
        choose(name)
        assert browser.run("$('problem').textContent").startswith(f"{name} is no trace, or a damaged one: ")
        assert browser.run("$('controls').hidden")
    (tmp_path / "torn.jsonl").write_text(whole[: whole.rindex('"ms"')])
    (tmp_path / "shorn.jsonl").write_text(whole[:-1])
    for name, forwards in (("torn.jsonl", 23), ("shorn.jsonl", 24)):  # the last line: half of it, and without its end
        choose(name)
        assert browser.run("$('problem').hidden && last()") == forwards
    choose("llada.jsonl")
    assert browser.run("$('problem').hidden") and not browser.run("$('controls').hidden")
    assert [cell[1] for cell in browser.run(f"show(24), {CELLS % 1}")] == texts(run, list(traces.replay(run))[-1])
    drop = "dispatchEvent(Object.assign(new Event('drop'), {dataTransfer: {files: [0, 1].map((i) => new File([%s], `run${i}`))}}))"
    browser.run(drop % json.dumps(whole))
    browser.run("new Promise((done) => setTimeout(done, 200))")
    assert browser.run("views.length") == 2
