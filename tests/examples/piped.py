"""A worker of text.upper in Python: convoke worker --pipe 'text.upper=python3 piped.py'"""
import json
import sys

for line in sys.stdin:
    event = json.loads(line)
    try:
        answer = {"ok": event["data"].upper()}
    except Exception as error:
        answer = {"error": {"code": "internal", "message": str(error), "retryable": False}}
    print(json.dumps({"id": event["id"], **answer}), flush=True)
