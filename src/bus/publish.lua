-- Publishes an event now or later, and once only within a window if it has a deduplication key.
--
-- The key is written before the event, so whatever could forbid that does so while nothing is
-- stored; it names the event's place once there is one. An error reply thus always means that
-- nothing was stored.
--
-- KEYS: 1 the events stream, 2 the delay queue, 3 the deduplication key (absent: no deduplication)
-- ARGV: 1 the window (ms), 2 'now', 'after' or 'at', then
--   for now: the fields; for after and at: 3 the delay or the time (ms), 4 the queue's member
-- Returns: place, duplicate (0 or 1), renewed (0 or 1). The place is an entry id or a due time (ms);
--   for a duplicate it is the first one's, and renewed says that its window was started again (a
--   write: what WAIT confirms after it includes the first).
-- Cost: O(fields), later: O(log n)
local window = ARGV[1]
local dedup = KEYS[3]
if dedup then
  local first = redis.call('GET', dedup)
  if first and first ~= '' then
    local renewed = redis.pcall('PEXPIRE', dedup, window)
    return { first, 1, renewed == 1 and 1 or 0 }
  end
  redis.call('SET', dedup, '', 'PX', window)
end

local place, stored
if ARGV[2] == 'now' then
  stored = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, 3))
  place = stored
else
  local due = tonumber(ARGV[3])
  if ARGV[2] == 'after' then
    local time = redis.call('TIME')
    due = due + time[1] * 1000 + math.floor(time[2] / 1000)
  end
  place = string.format('%.0f', due)
  stored = redis.pcall('ZADD', KEYS[2], place, ARGV[4])
end
if type(stored) == 'table' and stored.err then
  -- An empty key counts as none, should it stay.
  if dedup then
    redis.pcall('DEL', dedup)
  end
  return stored
end
if dedup then
  redis.call('SET', dedup, place, 'PX', window)
end
return { place, 0, 1 }
