# The server without torch: docker run -p 8000:8000 -v "$PWD/MODEL:/model:ro" retort
FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[runtime,serve]" && useradd --create-home retort
USER retort
EXPOSE 8000
ENTRYPOINT ["retort"]
CMD ["serve", "/model", "--host", "0.0.0.0", "--port", "8000"]
