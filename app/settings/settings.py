"""Every setting of the server: a flag of `trimvit serve`, and TRIMVIT_<NAME> in the environment."""

from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from app.settings.compute import ComputeSettings
from app.settings.http import HttpSettings
from app.settings.limits import LimitSettings
from app.settings.model import ModelSettings
from app.settings.processes import ProcessSettings
from app.settings.security import SecuritySettings
from app.settings.telemetry import TelemetrySettings
from app.settings.variables import PREFIX, settings_in


class Settings(
    # The help lists the flags of these classes from last to first, because of pydantic's order.
    TelemetrySettings,
    ProcessSettings,
    LimitSettings,
    SecuritySettings,
    HttpSettings,
    ComputeSettings,
    ModelSettings,
    BaseSettings,
):
    """Serve a vision transformer that prunes its patches; each request chooses its keep ratio."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """First the given values, then the environment as app.settings.variables reads it."""
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = settings_in(env_settings.env_vars)
        return init_settings, env_settings
