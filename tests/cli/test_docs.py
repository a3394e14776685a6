"""README and docs stay true: links lead somewhere, commands parse, and so do the examples of the help."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from dia.cli.help import EXAMPLES
from dia.cli.main import COMMANDS, command_of, command_parser, top_parser, with_underscores

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MADE = {
    "reference/cli.md",
    "notebooks/first_detector.md",
    "notebooks/reproduce_and_ablate.md",
}  # by docs/hooks.py
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.S | re.M)
HEREDOC = re.compile(r"<<-?\s*'?(\w+)'?[^\n]*\n.*?^\1$", re.S | re.M)
ENDS = {";", "|", "||", "&", "&&", "(", ")", ">", ">>", "2>", "<"}


def page_id(path):
    return path.relative_to(ROOT).as_posix()


def dia_lines(shell):
    """The arguments of each `dia ...`, `python -m dia ...` and `torchrun ... $(which dia) ...` of a shell."""
    shell = HEREDOC.sub("", shell.replace("\\\n", " "))
    for line in shell.splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";|&<>()")
        lexer.whitespace_split = True
        words = [w for w in lexer if w != "..."]
        if "torchrun" in words and "dia" in words:  # $(which dia)
            words = words[words.index("dia") :]
            words.remove(")")
        while words:
            end = next((i for i, w in enumerate(words) if w in ENDS), len(words))
            command, words = words[:end], words[end + 1 :]
            while command and re.fullmatch(r"\w+=.*", command[0]):  # variables
                command = command[1:]
            if command[:3] in (["python", "-m", "dia"], ["python3", "-m", "dia"]):
                command = command[2:]
            if command[:1] == ["dia"]:
                yield command[1:]


@cache
def parser_like(name, *argv):
    return command_parser(name, argv)


def check_parses(argv, capsys):
    """As the command line would, but files of `--config` need not be there."""
    argv = with_underscores(argv)
    if "--plugin" in argv:  # `main` takes it out before it makes a parser
        del argv[(i := argv.index("--plugin")) : i + 2]
    if "--config" in argv and not Path(argv[i := argv.index("--config") + 1]).is_file():
        del argv[i - 1 : i + 1]
    code = 0
    try:
        if argv[0].startswith("-"):
            top_parser().parse_args(argv)
        name, words = command_of(argv)
        decisive = []  # what the parser of `dia fit` depends on
        for flag in ("--method", "--preset"):
            if flag in words:
                decisive += words[words.index(flag) :][:2]
        parser_like(name, *decisive).parse_args(words)
    except SystemExit as stopped:
        code = stopped.code
    assert not code, f"dia {' '.join(argv)}\n{capsys.readouterr().err}"


PARSERS = {"dia": top_parser()} | {f"dia {name}": command_parser(name) for name in COMMANDS}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(path):
    text = FENCE.sub("", path.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        place, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link) or (not place and anchor):
            continue
        target = (path.parent / place).resolve()
        if target.is_relative_to(ROOT / "docs") and target.relative_to(ROOT / "docs").as_posix() in MADE:
            continue
        assert target.exists(), f"{path.name}: {link}"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_commands_parse(path, capsys):
    for language, body in FENCE.findall(path.read_text()):
        if language in ("sh", "bash", "shell", "console") or (not language and body.startswith("dia ")):
            for argv in dia_lines(body):
                check_parses(argv, capsys)


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_commands_within_the_text_exist(path):
    """Fragments such as `dia fit --resume`: the command and its flags are there."""
    for words in re.findall(r"`dia ([^`\n]+)`", FENCE.sub("", path.read_text())):
        name, *rest = words.split()
        if name in ("COMMAND", "…") or name.startswith("-"):
            continue
        key = "dia report benchmark" if words.startswith("report benchmark") else f"dia {name.strip('…,')}"
        assert key in PARSERS, words
        for flag in re.findall(r"--[\w-]+", " ".join(rest)):
            known = PARSERS[key]._option_string_actions
            assert with_underscores([flag])[0] in known or flag == "--print_config", f"{words}: {flag}"


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for path in PAGES:
        named = re.findall(r"(?:^|`)make ([\w-]+)", path.read_text(), re.M)
        assert set(named) <= targets, path


@pytest.mark.parametrize("name", PARSERS)
def test_every_argument_has_help_and_examples_parse(name, capsys):
    parser = PARSERS[name]
    for action in parser._actions:
        assert (action.help or "").strip() not in ("", "_EMPTY_HELP_"), f"{name}: {action.dest}"
    if name == "dia":
        return
    assert (parser.epilog or "").startswith(EXAMPLES), f"{name} has no examples"
    lines = list(dia_lines(parser.epilog))
    assert any(" ".join(["dia", *argv]).startswith(name) for argv in lines)
    for argv in lines:
        check_parses(argv, capsys)


def test_help_fits_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name, parser in PARSERS.items():
        text = parser.format_help()
        assert text.startswith(f"usage: {name} "), text[:80]
        prose = text.split(EXAMPLES)[0].splitlines()
        assert max(map(len, prose)) <= 80, name
        assert "default: null" not in text, name


def test_the_docs_say_of_the_results_what_the_table_says():
    results = (ROOT / "docs" / "results.md").read_text()
    beaten, of = re.search(r"(\d+) of (\d+) results of methods do not beat", results).groups()
    for page in ("index.md", "when-not.md"):
        claims = re.search(r"\*\*no method|no trained method", (ROOT / "docs" / page).read_text())
        assert bool(claims) == (beaten == of), page
