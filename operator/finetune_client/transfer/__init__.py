"""Copies files to a claim and from it, through a small pod that mounts the claim; cut connections are taken up again."""
