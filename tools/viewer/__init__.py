"""The pages of `leantad view`: content (their data), media (the videos), pages (templates), build."""
