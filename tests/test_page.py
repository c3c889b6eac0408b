"""The page in a real browser: what a reader sees and chooses, and what must never run."""

import csv
import shutil
import time

import pandas as pd
import pytest
import result_files as files
from playwright.sync_api import sync_playwright

import reporting.page
from harness.columns import COLUMNS
from harness.results import append_row
from reporting.page import write_page
from reporting.speeds import speeds
from reporting.tables import load_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no chromium: sudo apt-get install chromium (or brew install chromium)"
)
MINE = files.MACHINES[2]
PRICES = """machine,price,currency,date,source
NVIDIA_TITAN_RTX,3000,USD,2023-12,x
Apple_M3,1599,USD,2023-12,x
"""
CIFAR100 = "experiment=PyTorch, ResNet50, CIFAR100&test=batch 32"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    for number, machine in enumerate(files.MACHINES[:4]):
        changed = {"extrapolated": number == 1, "data": ["real", "synthetic"][number == 3]}
        changed["other_load_percent"] = 40.0 if number == 2 else 1.0
        files.write_machine(folder, machine, 1.0 + number, **changed)
    files.write_older(folder)
    (folder / "prices.csv").write_text(PRICES)
    return write_page(load_results(folder), folder)


@pytest.fixture
def open_page(browser):
    """Opens a page at an address and waits until it is drawn; any error of a script fails."""
    opened = []

    def open_(path, address="", width=1400, **settings):
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        page = context.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("http:", "https:"))
                and errors.append(f"fetched {request.url}"))  # fmt: skip
        page.goto(f"file://{path}#{address}")
        page.wait_for_selector("body[data-ready=yes]")
        opened.append((context, errors))
        return page

    yield open_
    for context, errors in opened:
        context.close()
        assert errors == []


def drawn_texts(page):
    return page.locator("#chart svg text").all_text_contents()


def in_order(page, texts):
    """Those of `texts` that the chart shows, from top to bottom."""
    return [text for text in drawn_texts(page) if text in texts]


def test_machines_are_ranked_and_weaker_evidence_is_marked(open_page, page_file):
    page = open_page(page_file, CIFAR100)
    names = [machine.replace("_", " ") for machine in files.MACHINES[:4]]
    assert in_order(page, names) == names[::-1]  # the last one is the fastest
    assert "lower is better" in page.locator("#title").text_content()
    assert any("synthetic" in text for text in drawn_texts(page))
    assert any("extrapolated" in text for text in drawn_texts(page))
    assert len([text for text in drawn_texts(page) if text.endswith("  disturbed")]) == 1


def test_the_address_highlights_your_machine(open_page, page_file):
    page = open_page(page_file, f"machine={MINE}&test=batch 32")
    assert page.locator("#note").text_content() == f"{MINE} is number 2 of 4."
    assert page.locator('#chart svg path[fill="#e69f00"]').count() == 1


def test_results_of_2023_are_never_ranked_with_others(open_page, page_file):
    page = open_page(page_file, f"{CIFAR100}&older=yes")
    shown = drawn_texts(page)
    assert "NVIDIA TITAN RTX" in shown and MINE.replace("_", " ") not in shown
    assert any("2023" in text for text in shown)


def test_what_the_reader_chooses_is_drawn_and_in_the_address(open_page, page_file):
    page = open_page(page_file)
    page.locator("select[name=experiment]").select_option("TensorFlow, ResNet50, Food101")
    page.locator("#title", has_text="TensorFlow, ResNet50, Food101").wait_for()
    assert "experiment=TensorFlow" in page.url
    page.get_by_label("synthetic data").uncheck()
    page.wait_for_function("location.hash.includes('synthetic=no')")
    page.wait_for_function("!document.querySelector('#chart').textContent.includes('synthetic')")


def test_price_against_speed_where_prices_are_known(open_page, page_file):
    page = open_page(page_file, f"view=price&older=yes&{CIFAR100}")
    shown = drawn_texts(page)
    assert {"Apple M3", "NVIDIA TITAN RTX", "price in USD"} <= set(shown)
    assert "Apple M3 Max" not in shown


def test_two_machines_agree_with_the_comparison_tool(open_page, page_file):
    from compare_results import comparison

    first, second = files.MACHINES[0], files.MACHINES[2]
    page = open_page(page_file, f"view=pair&machine={first}&other={second}")
    assert "geometric mean 0.33" in page.locator("#note").text_content()
    table = speeds(load_results(page_file.parent))
    a, b = (
        table[(table["machine"] == m) & (table["test"] == "batch 64")
              & (table["experiment"] == "pytorch_cv_resnet50_cifar100")].iloc[0].to_dict()
        for m in (first, second)
    )  # fmt: skip
    row = comparison(a | {"facts": {}}, b | {"facts": {}}, [])
    line = page.locator("tr", has_text="PyTorch, ResNet50, CIFAR100, batch 64").locator("td")
    assert line.nth(6).text_content() == "second"  # the one that others disturbed
    shown = [float(line.nth(place).text_content()) for place in (1, 2, 3)]
    assert shown == pytest.approx([row["ratio"], row["low"], row["high"]], rel=5e-3)


def test_rows_are_searched_sorted_and_downloaded(open_page, page_file, tmp_path):
    page = open_page(page_file, "view=table&search=apple 2023 cifar100 tensorflow")
    assert page.locator("#note").text_content().startswith("20 of ")
    page.get_by_role("button", name="machine").click()
    machines = page.locator("tbody td:first-child").all_text_contents()
    assert machines == sorted(machines)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download as CSV").click()
    waiting.value.save_as(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and {row["protocol"] for row in rows} == {"2023"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(open_page, page_file, scheme):
    page = open_page(page_file, f"machine={MINE}", width=400, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator("#chart svg").bounding_box()["width"] <= 400


def test_the_keyboard_reaches_everything(open_page, page_file):
    page = open_page(page_file, "view=table")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.slice(0, 20)"))
    assert {"Ranking", "Two machines", "Next", "Download as CSV", "speed"} <= reached


HOSTILE = '<img src=x onerror="document.title=1"></script><script>document.title=2</script>'


def test_rows_of_a_hostile_pull_request_neither_run_nor_break_it(open_page, tmp_path):
    files.write_machine(tmp_path, MINE, 1.0)
    path = files.training_path(tmp_path, "pytorch_cv", "Evil", files.TRAINING[0][1])
    row = files.training_row(HOSTILE, 32, 5.0, 50_000)
    for changed in ({"framework": HOSTILE}, {"framework": "x" * 10_000_000},
                    {"precision": "=1+1", "framework": "=cmd|' /C calc'!A0"}):  # fmt: skip
        append_row(
            path, row | changed | {"batch_size": len(changed["framework"]) % 1000 + 1}, COLUMNS
        )
    append_row(path.with_name(path.name.replace("Evil", "..%2f..%2fEvil")), row, COLUMNS)
    written = write_page(load_results(tmp_path), tmp_path)
    assert written.stat().st_size < 2e6
    for address in ("", "view=table", f"view=pair&machine={HOSTILE}&other={MINE}", "view=nonsense"):
        page = open_page(written, address)
        assert page.title() == "Machine learning speed of machines"
        assert page.locator("#chart img, #rows img, #rows script").count() == 0
    page = open_page(written, "view=table&search==cmd")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Download as CSV").click()
    text = waiting.value.path().read_text()
    assert "'=cmd" in text and ',"=cmd' not in text


def test_a_thousand_machines_open_at_once(open_page, page_file, tmp_path, monkeypatch):
    results = load_results(page_file.parent)
    some = speeds(results)
    one = some[some["machine"] == files.MACHINES[0]]
    many = [one.assign(machine=f"Made_Up_{i}", speed=one["speed"] * (1 + i / 100), label="x")
            for i in range(1000)]  # fmt: skip
    every = pd.concat(many * 2, ignore_index=True)  # as many as of twice the experiments
    monkeypatch.setattr(reporting.page, "speeds", lambda _: every)
    written = write_page(results, page_file.parent)
    monkeypatch.undo()
    assert written.stat().st_size < 5e6
    started = time.monotonic()
    page = open_page(written, "machine=Made_Up_500")
    took, megabytes = time.monotonic() - started, written.stat().st_size / 1e6
    print(f"{len(every)} rows, {megabytes:.1f} MB, opened in {took:.2f} s")
    assert "is number" in page.locator("#note").text_content()
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function("document.querySelectorAll('#chart svg text').length > 1500")
