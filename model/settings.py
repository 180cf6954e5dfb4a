"""Settings that every part of Plumbline shares, and how settings are read at all.

Each package has one typed settings class. Values come from environment variables
`PLUMBLINE_*`, then from one optional TOML file, then from the defaults. They are read once, at
the entrance of a process, and handed on.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from model.errors import SettingsError

PREFIX = "PLUMBLINE_"
CONFIG_FILE_VARIABLE = "PLUMBLINE_CONFIG_FILE"
DEFAULT_CONFIG_FILE = "plumbline.toml"

# What Kubernetes puts into every container of a namespace for a service named plumbline or
# plumbline-something. PLUMBLINE_PORT has a URL as its value: a number there is a user's mistake.
_OF_KUBERNETES = re.compile(
    r"PLUMBLINE(_\w+)?_("
    r"SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT=\w+://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)(=\w+://|_(PROTO|PORT|ADDR)=).*)"
)


class PlumblineSettings(BaseSettings):
    """Base of the settings classes: environment over TOML file over defaults."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then the TOML file."""
        toml = TomlConfigSettingsSource(settings_cls, toml_file=config_file())
        return init_settings, env_settings, toml


class ModelSettings(PlumblineSettings):
    """Where things live, which model is meant, and how it is told what goes on."""

    home: Path = Field(
        default=Path("var"),
        description="Folder that holds everything that lives: model store, state database, "
        "records, reports, caches.",
    )
    state_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the state database (stages, feedback, audit). "
        "Default: SQLite, `state.sqlite` in the home folder.",
    )
    model: str | None = Field(
        default=None,
        description="Name of the model to serve. Default: the only name that has a champion.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="Form of the lines that the service and the monitor log: text, or json, one "
        "object a line.",
    )

    @property
    def state_database(self) -> str:
        """The state database's URL with its default filled in."""
        return self.state_url or f"sqlite:///{self.home.absolute() / 'state.sqlite'}"


Settings = TypeVar("Settings", bound=PlumblineSettings)


def read_settings(kind: type[Settings], **given: Any) -> Settings:
    """Read one package's settings; `given` (from the command line) wins over every source.

    Raises `SettingsError` naming the setting, the value and what is valid.
    """
    path = config_file()
    if path is not None and not path.is_file():
        raise SettingsError(f"{CONFIG_FILE_VARIABLE} names {path}, which is no file")
    present = {name: value for name, value in given.items() if value is not None}
    try:
        return kind(**present)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        name = PREFIX + "_".join(map(str, first["loc"])).upper()
        # A fault between settings has no place, and its input is all of them.
        given_so = f"{name}={first['input']!r}: " if first["loc"] else ""
        raise SettingsError(f"{given_so}{message}") from error
    except (OSError, ValueError) as error:  # of the TOML file
        raise SettingsError(f"the settings file {config_file()} cannot be read: {error}") from error


def address(value: str) -> str:
    """Check that a setting is ADDRESS:PORT. Raises ValueError."""
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError("valid is ADDRESS:PORT, for example 127.0.0.1:3000")
    return value


def split_address(value: str) -> tuple[str, int]:
    """Host and port of ADDRESS:PORT; an IPv6 address loses its brackets.

    >>> split_address("[::1]:3000")
    ('::1', 3000)
    """
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)


def config_file() -> Path | None:
    """The TOML file in force: the one named by PLUMBLINE_CONFIG_FILE, else ./plumbline.toml."""
    named = os.environ.get(CONFIG_FILE_VARIABLE)
    if named:
        return Path(named)
    default = Path(DEFAULT_CONFIG_FILE)
    return default if default.is_file() else None


def refuse_unknown(kinds: list[type[PlumblineSettings]]) -> None:
    """Raise `SettingsError` for any PLUMBLINE_* variable or TOML key that no class knows."""
    known = {name for kind in kinds for name in kind.model_fields}
    valid = ", ".join(sorted(known))
    for variable, value in os.environ.items():
        if not variable.startswith(PREFIX) or variable == CONFIG_FILE_VARIABLE:
            continue
        if _OF_KUBERNETES.fullmatch(f"{variable}={value}"):
            continue
        if variable.removeprefix(PREFIX).lower() not in known:
            raise SettingsError(f"unknown setting {variable}; valid after {PREFIX}: {valid}")
    path = config_file()
    if path is not None:
        _refuse_unknown_keys(path, known, valid)


def _refuse_unknown_keys(path: Path, known: set[str], valid: str) -> None:
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error}") from error
    for key in content:
        if key not in known:
            raise SettingsError(f"unknown setting {key!r} in {path}; valid: {valid}")
