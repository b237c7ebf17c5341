"""What exercises and bugs are called, and where their files lie; nothing here takes long to import.

4_name.py is exercise 4, bugs/b1_name.py is bug b1, in this folder and in a student's.
"""

import re
from pathlib import Path

HERE = Path(__file__).parent


def exercises() -> list[str]:
    return sorted(file.stem for file in (*HERE.glob("[0-9][0-9]_*.py"), *HERE.glob("bugs/b*.py")))


def place(folder: Path, stem: str) -> Path:
    """Where the file of an exercise is, or of a bug."""
    return folder / ("bugs" if stem[0] == "b" else "") / f"{stem}.py"


def title(stem: str) -> tuple[str, str]:
    """Minutes and title of an exercise, as its first line says them."""
    first = place(HERE, stem).read_text(encoding="utf-8").splitlines()[0]
    return re.fullmatch(r'"""\w+ \d+, (\d+) minutes: (.*?)\.?', first).groups()


def begun(file: Path) -> dict:
    """The grade of a file of which nothing is known."""
    number, _, name = file.stem.partition("_")
    number = int(number) if number.isdigit() else number
    return {"exercise": number, "name": name, "status": "not begun", "passed": []}


def stem_of(grade: dict) -> str:
    number, name = grade["exercise"], grade["name"]
    return f"{number:02}_{name}" if isinstance(number, int) else f"{number}_{name}"
