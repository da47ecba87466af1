"""Generated images at scale: prompts, plan, drawing, shards, curation, fidelity, review, export."""
