"""How the starters were trained: one command each, so that every committed weight has one."""
