DROP VIEW convoke_task_outcomes;

CREATE VIEW convoke_task_outcomes AS
SELECT namespace, at, seq, subject AS task, substr(kind, 6) AS status, instance, data ->> 'error' AS error, data
FROM convoke_facts
WHERE reason IS NULL AND kind IN ('task.completed', 'task.failed');
