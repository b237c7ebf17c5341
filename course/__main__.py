"""The course: `python -m course` shows where you are, `python -m course 4` grades exercise 4.

    python -m course                  every exercise: passed, first failing check, not begun
    python -m course 4 --watch        again whenever the file is saved
    python -m course 4 --page p.html  your decode beside the project's, forward by forward
    python -m course --in DIR         a student's copies; a folder of folders is a class, a table
    python -m course --in DIR --json  for a script
    python -m course rank FILE:rule   your own rule among the project's strategies
    python -m course figures          draw the figures of docs/figures again

A file is graded in a process of its own, which is ended if it is silent for PATIENCE seconds. The
exit code is 0 if what was asked for by its number passed, else 1, and 2 if it cannot be asked.
How an exercise is declared: grading.py.
"""

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from course.names import HERE, exercises, place, stem_of, title
from course.process import graded
from lab.files import check_place

MARKS = {"passed": "+", "failed": "x", "refused": "!", "not begun": "."}


# --- what is shown --------------------------------------------------------------------------------


def line(grade: dict) -> str:
    """An exercise in the list of all."""
    stem = stem_of(grade)
    told = grade["status"]
    if told in ("failed", "refused"):
        first = grade["message"].strip().splitlines()[0]
        told += f" at {grade['check']}: {first}" if told == "failed" else f": {first}"
    elif grade.get("score"):
        told += f": {pairs(grade['score'])}"
    return f"{MARKS[grade['status']]} {stem:<20} {title(stem)[0]:>3} min  {told}"


def pairs(score: dict) -> str:
    """A score in words, the project's in brackets."""
    texts = {name: "{} ({})".format(*v) for name, v in score.items() if isinstance(v, list)}
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def report(grade: dict) -> str:
    """All about one exercise."""
    stem, status = stem_of(grade), grade["status"]
    kind = "Exercise" if stem[0] != "b" else "Bug"
    lines = [f"{kind} {grade['exercise']}: {title(stem)[1]}"]
    lines += [f"  passed  {check}" for check in grade["passed"]]
    if status == "passed":
        score = grade.get("score") or {}
        lines += [f"Passed. {pairs(score)}".rstrip()]
        lines += [f"The first answer: {score['answer']}"] if "answer" in score else []
    else:
        lines += [f"  {status:<7} {grade.get('check', '')}".rstrip(), "", grade["message"]]
    return "\n".join(lines)


def table(students: dict[str, list[dict]]) -> str:
    """A class: a line for each student, a column for each exercise."""
    width = max(map(len, students)) + 2
    numbers = [f"{grade['exercise']:>3}" for grade in next(iter(students.values()))]
    lines = ["".ljust(width) + "".join(numbers) + "  passed"]
    for name, grades in students.items():
        marks = "".join(f"{MARKS[grade['status']]:>3}" for grade in grades)
        passed = sum(grade["status"] == "passed" for grade in grades)
        lines.append(f"{name.ljust(width)}{marks}{passed:>8}")
    key = ", ".join(f"{mark} {status}" for status, mark in MARKS.items())
    return "\n".join([*lines, "", key])


# --- the command line -----------------------------------------------------------------------------


def parser():
    from argparse import ArgumentParser, RawDescriptionHelpFormatter

    what, _, more = __doc__.partition("\n\n")
    made = ArgumentParser("course", None, what, more, formatter_class=RawDescriptionHelpFormatter)
    made.error = lambda message: made.exit(2, f"course: {' '.join(message.split())}\n")
    made.add_argument("exercise", nargs="*", help="numbers; default all")
    made.add_argument("--in", dest="folder", default=HERE, type=Path, help="where the files are")
    made.add_argument("--watch", action="store_true", help="grade again when a file is saved")
    made.add_argument("--json", action="store_true", help="print grades as JSON")
    made.add_argument("--page", help="write a page of your decode beside the project's: p.html")
    return made


def chosen(numbers: list[str]) -> list[str]:
    known = {stem.partition("_")[0].lstrip("0"): stem for stem in exercises()}
    for number in numbers:
        if number.lstrip("0") not in known:
            raise ValueError(f"exercise is {number!r}, expected one of {', '.join(known)}")
    return [known[number.lstrip("0")] for number in numbers] or list(known.values())


def students(folder: Path, stems: list[str]) -> dict[str, list[Path]]:
    """The files of each student: those of the folder, or of each folder in it."""
    if not folder.is_dir():
        raise ValueError(f"--in {folder}: there is no such folder")
    folders = [folder]
    if not any(place(folder, stem).is_file() for stem in exercises()):
        folders = sorted(each for each in folder.iterdir() if each.is_dir() and each.name[0] != ".")
    if not folders:
        raise ValueError(f"--in {folder}: neither exercises there, nor folders of students")
    return {each.name: [place(each, stem) for stem in stems] for each in folders}


def show(args, files: dict[str, list[Path]]) -> bool:
    """Grade and print; whether all passed."""
    found: dict[str, list[dict]] = {}
    alone = len(files) == 1 and args.folder.name in files
    for name, own in files.items():
        found[name] = []
        for grade in graded(own):
            found[name].append(grade)
            if alone and not args.json:
                print((report if args.exercise else line)(grade), flush=True)
    if args.json:
        print(json.dumps(next(iter(found.values())) if alone else found))
    elif not alone:
        print(table(found))
    return all(grade["status"] == "passed" for own in found.values() for grade in own)


def watch(args, files: dict[str, list[Path]]) -> None:
    """Grade, then again whenever one of the files has been saved, until Ctrl-C."""
    times = None
    every = [file for own in files.values() for file in own]
    while True:
        now = [file.stat().st_mtime_ns if file.is_file() else 0 for file in every]
        if now != times:
            times = now
            show(args, files)
            print("(waiting for a file to be saved; Ctrl-C ends this)", file=sys.stderr, flush=True)
        time.sleep(0.5)


def page(path: str, file: Path, *more: Path) -> int:
    if more:
        raise ValueError(f"--page {path}: expected one exercise")
    check_place("--page", path, ".html")
    from course.page import write  # slow to load

    write(path, file)
    print(path)
    return 0


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["rank"]:
        from course.rank import main as rank  # slow to load, as all that has a network in it

        return rank(arguments[1:])
    if arguments == ["figures"]:
        from course.figures import main as figures

        return figures()
    parse = parser()
    args = parse.parse_args(arguments)
    if find_spec("torch") is None:
        parse.error(f"{sys.executable} has no PyTorch: is the environment active? README.md")
    try:
        stems = chosen(args.exercise)
        files = students(args.folder, stems)
        if args.page:
            return page(args.page, *(file for own in files.values() for file in own))
    except ValueError as error:
        parse.error(str(error))
    if args.watch:
        watch(args, files)
    return 0 if show(args, files) or not args.exercise else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
