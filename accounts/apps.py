from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """People, organizations, what they may do, and what they did."""

    name = "accounts"
    verbose_name = "Accounts"

    def ready(self) -> None:
        from accounts.api import schema  # noqa: F401  (tells the OpenAPI schema of our ways to sign in)
        from accounts.mfa import reseal_authenticators
        from accounts.security_events import listen
        from novastack.common.secrets import resealers

        listen()
        resealers.append(reseal_authenticators)
