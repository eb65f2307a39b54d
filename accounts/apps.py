from django.apps import AppConfig


class AccountsConfig(AppConfig):
    """People, organizations, what they may do, and what they did."""

    name = "accounts"
    verbose_name = "Accounts"
