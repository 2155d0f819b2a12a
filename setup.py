"""What pyproject.toml cannot say: `jobs/` is the package mnerqg_jobs in a wheel, where "jobs" could be anybody's."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mnerqg", "mnerqg.*"]), "mnerqg_jobs"],
    package_dir={"mnerqg_jobs": "jobs"},
    package_data={
        "mnerqg.scoring": ["paper_tables.yaml"],
        "mnerqg.report": ["page/*", "page/vendor/*"],
        "mnerqg_jobs": ["configs/*.yaml", "configs/*/*.yaml"],
    },
)
