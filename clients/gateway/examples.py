"""Examples of the OpenAPI description; but for the picture, answers of a gateway in front of flux-tiny."""

from pydantic.config import JsonDict

# 64 x 64 px, so that the example of the description can be sent as it stands.
RED_DOT_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQMAAACQp+OdAAAABlBMVEX////cHh7/Hx2WAAAAcklEQVR42s3QsQ3CMBSE4c/PSKRkBDYhbO4R"
    "GCEjuIwQiilMCgsKyvzV6e6e9HQcj3P9iNuGjCWlIkjMvdJaJZiYiP00uHAiuBJjNJNGp5MpSOU7+kdkzNx/dwptdBY2gsprjFZWgicPgtZ/"
    "29cY9jkAb7FqFwcNkzldAAAAAElFTkSuQmCC"
)

JOB: JsonDict = {
    "job_id": "job-5be6eacc41146219c091",
    "user_id": "123",
    "state": "SUCCEEDED",
    "step": 20,
    "total_steps": 20,
    "queue_position": 0,
    "time_left_s": None,
    "create_time": "2026-11-28T08:21:15.793013Z",
    "end_time": "2026-11-28T08:21:19.064007Z",
    "model_url": "s3://fluxsmith/default/jobs/job-5be6eacc41146219c091/1/lora.safetensors",
    "failure": None,
    "last_sequence": 16,
}

DOWNLOAD_LINK: JsonDict = {
    "url": "http://127.0.0.1:9000/fluxsmith/default/jobs/job-5be6eacc41146219c091/1/lora.safetensors?X-Amz-...",
    "expire_time": "2026-11-28T09:21:19.237524Z",
    "size_bytes": 331528,
    "content_digest": "291d6331559f48fab5c3b483b6e34eeb319f1de2475e22b7800535f5b35ac1ee",
}

EVENTS = """id: 2
event: state_changed
data: {"sequence":2,"time":"2026-11-28T08:21:15.988989Z","state":"RUNNING","message":"attempt 1"}

id: 4
event: steps_completed
data: {"sequence":4,"time":"2026-11-28T08:21:16.374985Z","steps":[{"step":1,"loss":0.9537506103515625,\
"learning_rate":0.0001,"gradient_norm":0.5515516996383667,"duration_s":0.155588,"skipped":false}],"total_steps":20}

id: 16
event: state_changed
data: {"sequence":16,"time":"2026-11-28T08:21:19.065013Z","state":"SUCCEEDED","message":""}
"""
