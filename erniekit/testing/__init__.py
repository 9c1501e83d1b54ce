"""What tests of ErnieKit, and of code that builds on it, share: tiny models, fake data, contracts."""
