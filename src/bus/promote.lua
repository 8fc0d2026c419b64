-- Moves due members of a delay queue to their stream.
--
-- Each member leaves the queue and enters the stream in this one step, so an event is in one of
-- the two at any time. A member that can not be unpacked becomes a dead letter, so that it never
-- stands in the way of those behind it.
--
-- KEYS: 1 the delay queue, 2 the events stream, 3 the dead-letter stream
-- ARGV: 1 members to move at most
-- Returns: moved, dead, due time (ms) of the next member or -1. Fails, with what did not fit still
--   in the queue, if the events stream can not be written.
-- Cost: O(limit * log n)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local REFUSED_PAUSE_MS = 60000

local function fields_of(member)
  local ok, parts = pcall(cmsgpack.unpack, member)
  if not ok or type(parts) ~= 'table' or #parts < 3 or #parts > 2001 or #parts % 2 == 0 then
    return nil
  end
  local count = 0
  for _, part in pairs(parts) do
    count = count + 1
    if type(part) ~= 'string' then
      return nil
    end
  end
  return count == #parts and parts or nil
end

local moved, dead = 0, 0
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for i = 1, #due, 2 do
  local member, score = due[i], due[i + 1]
  local fields = fields_of(member)
  -- Out first: a member that could not be removed would otherwise be added again at every call.
  redis.call('ZREM', KEYS[1], member)
  if fields then
    local added = redis.pcall('XADD', KEYS[2], '*', unpack(fields, 2))
    if type(added) == 'table' and added.err then
      redis.call('ZADD', KEYS[1], score, member)
      return added
    end
    moved = moved + 1
  else
    local added = redis.pcall('XADD', KEYS[3], '*', 'member', member,
      'deadreason', 'invalid_argument',
      'deadmessage', 'the delay queue held a member that is no event',
      'deadattempts', 0, 'deaddeliveries', 0, 'deadstream', KEYS[1],
      'deadtime', string.format('%.0f', now))
    if type(added) == 'table' and added.err then
      redis.call('ZADD', KEYS[1], string.format('%.0f', now + REFUSED_PAUSE_MS), member)
    else
      dead = dead + 1
    end
  end
end
local following = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return { moved, dead, following[2] or '-1' }
