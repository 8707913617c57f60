"""The small commands behind `ovsl`: report, profile, convert."""
