"""Ray programs: thin adapters around `devil`, each a script for `ray job submit`."""
