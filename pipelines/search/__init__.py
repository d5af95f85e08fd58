"""Search for hyper-parameters: ``funnel tune``."""
