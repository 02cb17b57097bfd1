"""Which lines of the compiled modules ran, from what gcov counted in the C code.

    python tests/compiled_lines.py BUILD_FOLDER SOURCE_FOLDER

gcov counts C lines, also those that run without the GIL. Cython writes a comment with
the file and the line before the C code of each statement; a statement has run if the
first C line behind such a comment has. What comes later may be the way out of an error,
which belongs to several statements.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

MARKER = re.compile(r'^\s*/\* "(scratchwriter/[^"]+)":(\d+)$')


def statements(c_file):
    """Yield a file of Cython, a line of it, and the lines of C that are its code."""
    source, start = None, 0
    lines = c_file.read_text().splitlines()
    for number, text in enumerate([*lines, '/* "end":0'], start=1):
        if text.lstrip().startswith('/* "'):
            if source is not None:
                yield *source, range(start, number)
            found = MARKER.match(text)
            source, start = (found[1], int(found[2])) if found else None, number


def counted(build):
    """Yield the files that gcov knows, with the counts of their lines."""
    for data in sorted(build.rglob("*.gcda")):
        command = ["gcov", "--json-format", "--stdout", str(data)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for report in out.splitlines():
            for file in json.loads(report)["files"]:
                counts = defaultdict(int)
                for line in file["lines"]:
                    counts[line["line_number"]] += line["count"]
                yield Path(file["file"]), counts


def lines_of_sources(build, sources):
    """Return how often each line of each source file ran."""
    ran = defaultdict(lambda: defaultdict(int))
    for path, counts in counted(build):
        if path.suffix == ".c" and "scratchwriter" in path.parts:
            for name, line, c_lines in statements(sources.parent / path):
                first = next((c for c in c_lines if c in counts), None)
                if first is not None:
                    ran[name][line] += counts[first]
        elif path.suffix == ".h" and path.parts[:2] == ("src", "scratchwriter"):
            for line, count in counts.items():
                ran[str(path.relative_to("src"))][line] += count
    return ran


def as_ranges(numbers, among):
    """Return numbers as text; those that follow each other among all are a range."""
    position = {number: i for i, number in enumerate(sorted(among))}
    ranges = []
    for number in sorted(numbers):
        if ranges and position[number] == position[ranges[-1][1]] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in ranges)


def main():
    build, sources = map(Path, sys.argv[1:])
    ran = lines_of_sources(build, sources)
    if not ran:
        sys.exit(f"no .gcda file in {build}: was it built with SCRATCHWRITER_COVERAGE=1?")
    print(f"{'Name':<36}{'Lines':>7}{'Miss':>6}{'Cover':>7}   Missing")
    totals = [0, 0]
    for name, counts in sorted(ran.items()):
        missed = [line for line, count in counts.items() if not count]
        totals = [totals[0] + len(counts), totals[1] + len(missed)]
        covered = 1 - len(missed) / len(counts)
        missing = as_ranges(missed, counts)
        print(f"{name:<36}{len(counts):>7}{len(missed):>6}{covered:>7.1%}   {missing}")
    print(f"{'TOTAL':<36}{totals[0]:>7}{totals[1]:>6}{1 - totals[1] / totals[0]:>7.1%}")


if __name__ == "__main__":
    main()
