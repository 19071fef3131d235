FROM python:3.12-slim

WORKDIR /opt/conductor
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY conductor conductor
COPY workers workers
RUN pip install --no-cache-dir . --constraint constraints.txt \
    && useradd --create-home --uid 1000 conductor \
    && install -d -o conductor -g conductor /workspaces

USER conductor
WORKDIR /home/conductor
CMD ["celery", "-A", "workers", "worker", "--loglevel", "INFO"]
