"""`cgxffcv report`: one page about one or several runs."""

from __future__ import annotations

from collections.abc import Sequence

from cgxffcv import files
from cgxffcv.app.usage import Parser
from cgxffcv.errors import UserError

DESCRIPTION = """\
Writes a page (HTML, with everything inside) about one or several runs: curves, what differs in their configurations,
where the time went, bytes on the wire, the machine; of the first run also what its best network takes for what, and the
test images that it is most surely wrong about. RUN is a log folder, or its run.jsonl."""


def make_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=DESCRIPTION)
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument("-o", "--out", metavar="FILE.html", default="report.html", help="(default report.html)")
    parser.add_argument("--png", metavar="FILE.png", help="the curves as a picture, too (needs matplotlib)")
    parser.add_argument("--no-images", action="store_true", help="do not run the network on the test set")
    return parser


def main(prog: str, arguments: Sequence[str]) -> int:
    options = make_parser(prog).parse_args(list(arguments))
    from cgxffcv.app import mistakes, page, runs

    found = [runs.read(path) for path in options.runs]
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
