"""Settings as people and orchestrators write them into the environment."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.security.keys import KEYS_VARIABLE
from app.settings.settings import Settings
from app.settings.variables import plain, remarks, settings_in, variable_of

SETTINGS = frozenset({"port", "host", "default_keep_ratio", "api_keys_file", "operations_port", "tls_key"})

# What Kubernetes injects for a Service called trimvit with a port http and for one called trimvit-operations,
# and Docker for a link.
OF_SERVICES = {
    "TRIMVIT_PORT": "tcp://10.96.12.34:80",
    "TRIMVIT_PORT_80_TCP": "tcp://10.96.12.34:80",
    "TRIMVIT_PORT_80_TCP_PROTO": "tcp",
    "TRIMVIT_PORT_80_TCP_PORT": "80",
    "TRIMVIT_PORT_80_TCP_ADDR": "10.96.12.34",
    "TRIMVIT_SERVICE_HOST": "10.96.12.34",
    "TRIMVIT_SERVICE_PORT": "80",
    "TRIMVIT_SERVICE_PORT_HTTP": "80",
    "TRIMVIT_OPERATIONS_PORT": "tcp://[fd00::7]:9000",
    "TRIMVIT_OPERATIONS_PORT_9000_TCP_ADDR": "fd00::7",
    "TRIMVIT_OPERATIONS_SERVICE_HOST": "fd00::7",
    "TRIMVIT_MODEL_SERVICE_PORT_GRPC_WEB": "9000",
}


@pytest.mark.parametrize(
    "text", ["8000", " 8000", "8000\n", "8000\r\n", '"8000"', "'8000'", ' "8000" \n', '" 8000"']
)
def test_blanks_and_quotes_around_a_value_are_no_part_of_it(text: str) -> None:
    """As an env-file, a Secret made with echo, or a YAML block leave them."""
    assert settings_in({"TRIMVIT_PORT": text}) == {"trimvit_port": "8000"}


@given(st.text(alphabet=" \"'a\n", max_size=8))
def test_what_is_plain_has_no_blanks_around_it(text: str) -> None:
    """And no quote is lost that has no partner."""
    assert plain(text) == plain(text).strip()
    assert plain(plain("x" + text + "x")) == plain("x" + text + "x")


def test_what_kubernetes_says_of_services_is_no_setting() -> None:
    """Whichever Service it is whose name begins with trimvit; the log names the variables."""
    assert settings_in({**OF_SERVICES, "TRIMVIT_HOST": "::"}) == {"trimvit_host": "::"}
    (remark,) = remarks(OF_SERVICES, SETTINGS, {})
    assert re.match(
        "ignored TRIMVIT_MODEL_SERVICE_PORT_GRPC_WEB, .*: they describe a Service of the cluster", remark
    )
    for name in OF_SERVICES:
        assert name in remark


def test_a_wrong_port_is_not_taken_for_a_service() -> None:
    """Only what has the form of Kubernetes' own is passed over."""
    assert settings_in({"TRIMVIT_PORT": "http"}) == {"trimvit_port": "http"}
    assert settings_in({"TRIMVIT_HOST": "tcp://10.0.0.1:80"}) == {"trimvit_host": "tcp://10.0.0.1:80"}


def test_an_empty_variable_counts_as_not_set_and_the_log_says_so() -> None:
    """As a compose file sets those that the shell has not."""
    assert settings_in({"TRIMVIT_PORT": "", "TRIMVIT_HOST": " "}) == {}
    assert list(remarks({"TRIMVIT_PORT": ""}, SETTINGS, {})) == [
        "TRIMVIT_PORT is empty and is treated as not set"
    ]


def test_empty_api_keys_are_told_of() -> None:
    """They ask for none, which may not be what was meant."""
    assert list(remarks({KEYS_VARIABLE: ""}, SETTINGS, {})) == [
        "TRIMVIT_API_KEYS is empty, so it requires no API key"
    ]


@pytest.mark.parametrize("name", ["api_keys_file", "tls_certificate", "tls_key"])
def test_an_empty_variable_does_not_turn_security_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Secret that was not filled in would open the server to everybody."""
    monkeypatch.setenv(f"TRIMVIT_{name.upper()}", "")
    with pytest.raises(ValueError, match="it is empty; name a file, or leave it out"):
        Settings()


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        (
            "TRIMVIT_DEFUALT_RATIO",
            "TRIMVIT_DEFUALT_RATIO is not a known setting and has no effect; "
            "did you mean TRIMVIT_DEFAULT_KEEP_RATIO?",
        ),
        (
            "trimvit_keep_ratio",
            "trimvit_keep_ratio is not a known setting and has no effect; "
            "did you mean TRIMVIT_DEFAULT_KEEP_RATIO?",
        ),
        ("TRIMVIT_ZEBRA", "TRIMVIT_ZEBRA is not a known setting and has no effect"),
        ("TRIMVIT_MIN_REPLICAS", "TRIMVIT_MIN_REPLICAS is a setting of trimvit ray and has no effect here"),
    ],
)  # fmt: skip
def test_a_variable_without_effect_is_told_of(name: str, remark: str) -> None:
    """With the setting that it was probably meant for."""
    assert list(remarks({name: "1"}, SETTINGS, {"trimvit ray": frozenset({"min_replicas"})})) == [remark]


@pytest.mark.parametrize(
    "name", [KEYS_VARIABLE, "TRIMVIT_API_KEY", "TRIMVIT_TEST_PHOTOGRAPHS", "PATH", "trimvit_port"]
)
def test_a_variable_with_an_effect_is_not_told_of(name: str) -> None:
    """Nor one that is none of ours."""
    assert list(remarks({name: "1"}, SETTINGS, {})) == []


def test_one_setting_in_two_spellings_is_told_of() -> None:
    """Only one of them can count."""
    (remark,) = remarks({"TRIMVIT_PORT": "1", "trimvit_port": "2"}, SETTINGS, {})
    assert remark == "trimvit_port is set twice, in upper and in lower case: keep one"


def test_the_variable_of_a_setting_is_found() -> None:
    """In the spelling in which it was given; none where it says nothing of the setting."""
    assert variable_of("port", {"trimvit_port": "80"}) == "trimvit_port"
    assert variable_of("port", {"TRIMVIT_PORT": ""}) is None
    assert variable_of("port", OF_SERVICES) is None
    assert variable_of("port", {}) is None


def test_the_settings_are_read_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service called trimvit does not keep the server from starting."""
    for name, value in OF_SERVICES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("trimvit_host", ' "::1"\n')
    settings = Settings()
    assert (settings.host, settings.port, settings.operations_port) == ("::1", 8000, None)
