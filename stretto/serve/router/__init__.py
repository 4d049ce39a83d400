"""Several servers of one model behind one address: which replica is asked, and what happens when one of them ends."""
