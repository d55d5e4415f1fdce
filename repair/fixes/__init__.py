"""Repairs that need no source: one file per kind of damage, each giving new bytes for a finding."""
