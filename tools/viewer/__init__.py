"""The pages of `leantad view`: content (what they say), media (the videos), pages (templates), build."""
