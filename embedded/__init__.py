"""The services of docker-compose.yaml from pip packages, for one machine without Docker, and their supervisor."""
