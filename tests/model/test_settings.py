"""Settings come from environment, TOML and defaults, in this order; what is unknown is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import SettingsError
from model.settings import ModelSettings, config_file, read_settings, refuse_unknown
from monitoring.settings import MonitoringSettings
from service.settings import ServiceSettings


@pytest.fixture
def toml(tmp_path, monkeypatch):
    """`toml(text)`: makes this the settings file in force."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "settings.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        monkeypatch.setenv("PLUMBLINE_CONFIG_FILE", str(path))
        return path

    return write


def test_the_defaults_hold_where_nothing_is_said():
    settings = read_settings(ServiceSettings)
    assert settings.home == Path("var")
    assert settings.serve_on == "127.0.0.1:3000"
    assert settings.alpha is None
    assert settings.limit_part_bytes == 10 * 2**20


def test_the_file_wins_over_defaults_the_environment_over_the_file_and_the_call_over_all(
    toml, monkeypatch
):
    toml("batch_images = 2\nqueue_images = 20\nlimit_parts = 3")
    monkeypatch.setenv("PLUMBLINE_QUEUE_IMAGES", "30")
    monkeypatch.setenv("PLUMBLINE_LIMIT_PARTS", "4")
    settings = read_settings(ServiceSettings, limit_parts=5)
    assert settings.batch_images == 2
    assert settings.queue_images == 30
    assert settings.limit_parts == 5
    assert settings.deadline_seconds == 5


def test_a_value_of_none_from_the_command_line_means_not_given(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_BATCH_IMAGES", "3")
    assert read_settings(ServiceSettings, batch_images=None).batch_images == 3


def test_the_file_beside_the_process_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file() is None
    (tmp_path / "plumbline.toml").write_text("model = 'shapes'")
    assert read_settings(ModelSettings).model == "shapes"


def test_paths_that_follow_from_the_home_are_filled_in(monkeypatch, tmp_path):
    monkeypatch.setenv("PLUMBLINE_HOME", str(tmp_path))
    settings = read_settings(MonitoringSettings)
    assert settings.records == str(tmp_path / "records")
    assert settings.state_database == f"sqlite:///{tmp_path / 'state.sqlite'}"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PLUMBLINE_ALPHA", "2", "less than 1"),
        ("PLUMBLINE_WORKERS", "many", "integer"),
        ("PLUMBLINE_WORKERS", "0", "greater than or equal to 1"),
        ("PLUMBLINE_ENGINE", "onnx", "'openvino' or 'torch'"),
        ("PLUMBLINE_SERVE_ON", "3000", "ADDRESS:PORT"),
        ("PLUMBLINE_SERVE_ON", "127.0.0.1:99999", "ADDRESS:PORT"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_the_value_and_what_is_valid(
    name, value, message, monkeypatch
):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name}='{value}'.*{message}"):
        read_settings(ServiceSettings)


def test_settings_that_do_not_go_together_are_told_without_all_the_others(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_QUEUE_IMAGES", "8")
    with pytest.raises(SettingsError, match=r"^queue_images=8 is less than limit_parts=64"):
        read_settings(ServiceSettings)


def test_a_bad_value_in_the_file_is_refused_with_its_name(toml):
    toml("batch_images = 'eight'")
    with pytest.raises(SettingsError, match=r"PLUMBLINE_BATCH_IMAGES='eight'.*integer"):
        read_settings(ServiceSettings)


@pytest.mark.parametrize("text", ["batch_images = ", b"\xff\xfe", "= 3"])
def test_a_file_that_is_not_toml_is_refused_by_name(text, toml):
    path = toml(text)
    for read in (lambda: read_settings(ServiceSettings), lambda: refuse_unknown([ServiceSettings])):
        with pytest.raises(SettingsError, match=str(path)):
            read()


def test_a_file_that_was_named_and_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PLUMBLINE_CONFIG_FILE", str(tmp_path / "none.toml"))
    for read in (lambda: read_settings(ServiceSettings), lambda: refuse_unknown([ServiceSettings])):
        with pytest.raises(SettingsError, match=r"none\.toml"):
            read()


def test_an_unknown_variable_is_refused_and_the_valid_ones_are_listed(monkeypatch):
    monkeypatch.setenv("PLUMBLINE_BATCHIMAGES", "8")
    with pytest.raises(SettingsError, match=r"PLUMBLINE_BATCHIMAGES; valid.*batch_images, "):
        refuse_unknown([ServiceSettings])


OF_KUBERNETES = {
    "SERVICE_HOST": "10.0.0.11",
    "SERVICE_PORT": "3000",
    "SERVICE_PORT_HTTP": "3000",
    "PORT": "tcp://10.0.0.11:3000",
    "PORT_3000_TCP": "tcp://10.0.0.11:3000",
    "PORT_3000_TCP_PROTO": "tcp",
    "PORT_3000_TCP_PORT": "3000",
    "PORT_3000_TCP_ADDR": "10.0.0.11",
}


@pytest.mark.parametrize("service", ["PLUMBLINE", "PLUMBLINE_MONITOR"])
def test_what_kubernetes_injects_for_a_service_of_that_name_is_left_alone(service, monkeypatch):
    for name, value in OF_KUBERNETES.items():
        monkeypatch.setenv(f"{service}_{name}", value)
    refuse_unknown([ServiceSettings])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PLUMBLINE_PORT", "3000"),
        ("PLUMBLINE_MONITOR_PORT", "3001"),
        ("PLUMBLINE_HOST", "0.0.0.0"),
        ("PLUMBLINE_SERVICE", "10.0.0.11"),
        ("PLUMBLINE_PORT_3000", "tcp://10.0.0.11:3000"),
        ("PLUMBLINE_PORT_3000_TCP_NAME", "http"),
    ],
)
def test_names_that_only_look_so_are_refused(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"unknown setting {name};"):
        refuse_unknown([ServiceSettings])


def test_an_unknown_key_of_the_file_is_refused_and_the_valid_ones_are_listed(toml):
    path = toml("batchimages = 8")
    with pytest.raises(SettingsError, match=f"'batchimages' in {path}; valid.*batch_images, "):
        refuse_unknown([ServiceSettings])


def test_what_any_of_the_classes_knows_passes(toml, monkeypatch):
    toml("batch_images = 8\nhome = '/tmp'")
    monkeypatch.setenv("PLUMBLINE_ALPHA", "0.05")
    monkeypatch.setenv("UNRELATED", "1")
    refuse_unknown([ModelSettings, ServiceSettings])
    with pytest.raises(SettingsError, match="PLUMBLINE_ALPHA"):
        refuse_unknown([ModelSettings])


@pytest.mark.parametrize("kind", [ModelSettings, MonitoringSettings, ServiceSettings])
def test_every_setting_is_described_and_none_has_a_name_that_kubernetes_injects(kind):
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert not name.upper().endswith(("_PORT", "_SERVICE_HOST")), name


@pytest.mark.parametrize(
    ("given", "host", "port"),
    [
        ("127.0.0.1:3000", "127.0.0.1", 3000),
        ("[::1]:80", "::1", 80),
        ("0.0.0.0:8080", "0.0.0.0", 8080),
    ],
)
def test_address_and_port_are_taken_apart(given, host, port):
    settings = read_settings(ServiceSettings, serve_on=given)
    assert (settings.host, settings.port) == (host, port)
