"""`cgxffcv report`: a page about one or more runs."""

from __future__ import annotations

from collections.abc import Sequence

from cgxffcv import files
from cgxffcv.app.usage import Parser
from cgxffcv.errors import UserError

DESCRIPTION = """\
Writes a self-contained HTML page about one or more runs: curves, what differs in their configurations, where the time
went, bytes on the wire, the machine; for the first run also which classes its best network confuses, and the test
images that it is most confidently wrong about. RUN is a log folder, or its run.jsonl."""


def make_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=DESCRIPTION)
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("-o", "--out", metavar="FILE.html", default="report.html", help="(default report.html)")
    parser.add_argument("--png", metavar="FILE.png", help="also write the curves as a picture (needs matplotlib)")
    parser.add_argument("--no-images", action="store_true", help="do not run the network on the test set")
    return parser


def main(prog: str, arguments: Sequence[str]) -> int:
    options = make_parser(prog).parse_args(list(arguments))
    from cgxffcv.app import mistakes, page, runs

    found = runs.read_all(options.runs)
    verdicts, problem = None, None
    if not options.no_images:
        try:
            verdicts = mistakes.judge(found[0].folder, found[0].setting("data.val_dataset"))
        except (UserError, OSError) as error:
            problem = str(error)
    files.write(options.out, page.page(found, verdicts, problem))
    print(options.out)
    if options.png:
        from cgxffcv.app import picture

        picture.write(found, options.png)
        print(options.png)
    return 0
