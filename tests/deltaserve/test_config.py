from dataclasses import dataclass
from pathlib import Path

import pytest

from deltaserve.config import load, setting


@dataclass(frozen=True)
class Settings:
    base: Path = setting(help="folder of the base")
    port: int = setting(8000, "port")
    ratio: float = setting(0.5, "100 % of it")
    workers: tuple[str, ...] = setting((), "addresses")
    verbose: bool = setting(False, "more words")
    endpoint: str | None = setting(None, "where to")

    def __post_init__(self) -> None:
        if self.port < 0:
            raise ValueError(f"port is {self.port}; expected 0 or more")


def test_flags_win_over_variables_and_defaults_fill_the_rest() -> None:
    environ = {"DELTASERVE_X_PORT": "1", "DELTASERVE_X_WORKERS": "a:1, b:2", "DELTASERVE_OTHER_THING": "ignored"}
    made = load(Settings, "x", ["--base", "/m", "--port", "2", "--verbose", "yes"], environ)
    assert made == Settings(Path("/m"), 2, 0.5, ("a:1", "b:2"), True, None)


def test_optional_can_be_set_and_emptied() -> None:
    assert load(Settings, "x", ["--base", "m", "--endpoint", "h:1"], {}).endpoint == "h:1"
    assert load(Settings, "x", ["--base", "m", "--endpoint", ""], {}).endpoint is None


@pytest.mark.parametrize(
    ("argv", "environ", "said"),
    [
        ([], {}, "--base (or DELTASERVE_X_BASE) is required"),
        (["--base", "m", "--prot", "1"], {}, "--prot"),
        (["--base", "m"], {"DELTASERVE_X_PROT": "1"}, "unknown variables DELTASERVE_X_PROT"),
        (["--base", "m", "--port", "many"], {}, "--port is 'many'; expected int"),
        (["--base", "m", "--verbose", "perhaps"], {}, "expected bool"),
        (["--base", "m", "--port", "-1"], {}, "port is -1; expected 0 or more"),
    ],
)
def test_bad_settings_exit_with_a_message(
    argv: list[str], environ: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(Settings, "x", argv, environ)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_help_prints_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(Settings, "x", ["--help"], {})
    assert stopped.value.code == 0
    assert "100 % of it (default: 0.5)" in " ".join(capsys.readouterr().out.split())
