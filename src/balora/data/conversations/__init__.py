"""Conversations: their forms, chat templates, and which tokens are learnt."""
