"""What Celery does: which queue works on a task, and which tasks the beat sends how often (seconds)."""

from __future__ import annotations

from typing import Any

ROUTES = {
    "projects.run_operation": {"queue": "provisioning"},
    "projects.reconcile": {"queue": "monitoring"},
    "projects.check_health": {"queue": "monitoring"},
    "projects.collect_usage": {"queue": "monitoring"},
    "projects.guard_disks": {"queue": "monitoring"},
    "projects.read_logs": {"queue": "monitoring"},
    "projects.examine": {"queue": "monitoring"},
    "projects.check_region": {"queue": "maintenance"},
    "projects.janitor": {"queue": "maintenance"},
    "projects.purge_due": {"queue": "maintenance"},
    "projects.clean_up": {"queue": "maintenance"},
    "projects.thin_metrics": {"queue": "maintenance"},
    "projects.renew_certificates": {"queue": "maintenance"},
    "projects.keep_standbys": {"queue": "maintenance"},
    "projects.keep_pools": {"queue": "maintenance"},
    "projects.check_pools": {"queue": "monitoring"},
    "projects.check_pool": {"queue": "monitoring"},
    "projects.clean_up_pools": {"queue": "maintenance"},
    "projects.check_connectors": {"queue": "maintenance"},
    "backups.dispatch_due": {"queue": "maintenance"},
    "backups.prove_due": {"queue": "maintenance"},
    "backups.keep": {"queue": "maintenance"},
    "backups.clean_up": {"queue": "maintenance"},
    "backups.test_storages": {"queue": "maintenance"},
}


def beat(data_grace_seconds: int) -> dict[str, Any]:
    """Every tick expires before the next one: a broker that was away does not answer with a storm."""
    return {
        "reconcile": {"task": "projects.reconcile", "schedule": 5.0, "options": {"expires": 5}},
        "health": {"task": "projects.check_health", "schedule": 5.0, "options": {"expires": 5}},
        "disks": {"task": "projects.guard_disks", "schedule": 5.0, "options": {"expires": 5}},
        "usage": {"task": "projects.collect_usage", "schedule": 30.0, "options": {"expires": 30}},
        "janitor": {
            "task": "projects.janitor",
            "schedule": min(60.0, max(2.0, data_grace_seconds)),
            "options": {"expires": 60},
        },
        # Daily: it runs once in 20 hours however often it is sent. Sent every hour, since a beat that is restarted each day
        # would never come to the end of a day.
        "purge-due": {"task": "projects.purge_due", "schedule": 3600.0, "options": {"expires": 3600}},
        "standbys": {"task": "projects.keep_standbys", "schedule": 5.0, "options": {"expires": 5}},
        "pools": {"task": "projects.keep_pools", "schedule": 5.0, "options": {"expires": 5}},
        "pool-health": {"task": "projects.check_pools", "schedule": 300.0, "options": {"expires": 300}},
        "failed-pools": {
            "task": "projects.clean_up_pools",
            "schedule": 3600.0,
            "options": {"expires": 3600},
        },  # daily, as above
        "certificates": {"task": "projects.renew_certificates", "schedule": 600.0, "options": {"expires": 600}},
        "connectors": {"task": "projects.check_connectors", "schedule": 300.0, "options": {"expires": 300}},
        "thin-metrics": {"task": "projects.thin_metrics", "schedule": 300.0, "options": {"expires": 300}},
        "backups-due": {"task": "backups.dispatch_due", "schedule": 15.0, "options": {"expires": 15}},
        "backups-prove": {"task": "backups.prove_due", "schedule": 30.0, "options": {"expires": 30}},
        "backups-keep": {"task": "backups.keep", "schedule": 3600.0, "options": {"expires": 3600}},  # daily, as above
        "storages": {"task": "backups.test_storages", "schedule": 300.0, "options": {"expires": 300}},
        "backups-clean-up": {"task": "backups.clean_up", "schedule": 3600.0, "options": {"expires": 3600}},
        "clean-up": {"task": "projects.clean_up", "schedule": 3600.0, "options": {"expires": 3600}},
        **{
            f"pulse-{queue}": {
                "task": "projects.pulse",
                "schedule": 15.0,
                "args": [queue],
                "options": {"expires": 15, "queue": queue},
            }
            for queue in ("provisioning", "monitoring", "maintenance", "backups")
        },
    }
