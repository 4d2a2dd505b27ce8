"""The loops around the methods: prepare, fit, predict, evaluate; devices, seeds, progress and files belong here."""
