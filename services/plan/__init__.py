"""`evospec plan`: what a load takes of GPUs, networks and stores, before any of it is bought."""
