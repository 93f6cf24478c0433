"The package's facts stand in settings.ini; this file only hands them to setuptools."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
facts = config["DEFAULT"]
extras = {
    k.removesuffix("_requirements"): v.split()
    for k, v in facts.items()
    if k.endswith("_requirements")
}
extras["all"] = [r for name in ("train", "grid", "score", "explore") for r in extras[name]]

setup(
    name=facts["lib_name"],
    version=facts["version"],
    description=facts["description"],
    author=facts["author"],
    url=facts["git_url"],
    license="Apache-2.0",
    python_requires=">=" + facts["min_python"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["xgdetox", "xgdetox.*"]),
    include_package_data=True,
    package_data={"xgdetox": ["assets/**/*"]},
    install_requires=facts["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": facts["console_scripts"].split()},
    zip_safe=False,
)
