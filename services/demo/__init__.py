"""`evospec demo`: the whole system on this machine, under traffic that switches topic, and a report."""
