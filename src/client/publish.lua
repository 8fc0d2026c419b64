-- Publishes an event now or later, and once only within a window if it has a deduplication key.
--
-- The key is written before the event, so whatever could forbid that does so while nothing is
-- stored; it names the event's place once there is one. So an error reply always means that
-- nothing was stored.
--
-- KEYS: 1 the events stream, 2 the delay queue, 3 the deduplication key (absent: no deduplication)
-- ARGV: 1 the window (ms), which begins when the event is due, 2 'now', 'made' (now, and the stream was made
--   once: fails with NOSTREAM if it is not there), 'after' or 'at', then for now and made: the fields; for
--   after and at: 3 the delay or the time (ms), 4 the queue's member
-- Returns: place, duplicate (0 or 1), renewed (0 or 1). The place is an entry id or a due time (ms);
--   for a duplicate it is the first one's, and renewed says that its window was started again (a
--   write: what WAIT confirms after it includes the first).
-- Cost: O(fields), later: O(log n)
local dedup = KEYS[3]
local later = ARGV[2] == 'after' or ARGV[2] == 'at'

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- The window of what runs later begins when it is due.
local function window(due)
  local wait = due and math.max(0, due - now()) or 0
  return string.format('%.0f', wait + tonumber(ARGV[1]))
end

local due
if later then
  due = tonumber(ARGV[3])
  if ARGV[2] == 'after' then
    due = due + now()
  end
end
if dedup then
  local first = redis.call('GET', dedup)
  if first and first ~= '' then
    -- An entry's id is no number.
    local renewed = redis.pcall('PEXPIRE', dedup, window(tonumber(first)))
    return { first, 1, renewed == 1 and 1 or 0 }
  end
  redis.call('SET', dedup, '', 'PX', ARGV[1])
end

local place, stored
if later then
  place = string.format('%.0f', due)
  stored = redis.pcall('ZADD', KEYS[2], place, ARGV[4])
elseif ARGV[2] == 'made' then
  stored = redis.pcall('XADD', KEYS[1], 'NOMKSTREAM', '*', unpack(ARGV, 3))
  place = stored
else
  stored = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, 3))
  place = stored
end
if not stored then
  stored = { err = 'NOSTREAM the stream was made once, and is not there' }
end
if type(stored) == 'table' and stored.err then
  -- An empty key counts as none, should it stay.
  if dedup then
    redis.pcall('DEL', dedup)
  end
  return stored
end
if dedup then
  redis.call('SET', dedup, place, 'PX', window(due))
end
return { place, 0, 1 }
