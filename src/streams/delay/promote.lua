-- Moves due members of a delay queue to their stream.
--
-- Each member leaves the queue and enters the stream in this one step, so an event is in one of
-- the two at any time. A member that is no event becomes a dead letter, so that it never stands in
-- the way of those behind it; so does one that is larger than any event, cut. Members are taken one
-- at a time: they may be of any size, and so no more than one is in memory.
--
-- KEYS: 1 the delay queue, 2 the events stream, 3 the dead-letter stream
-- ARGV: 1 members to move at most, 2 bytes of a member at most
-- Returns: moved, dead, due time (ms) of the next member: now if the call ended early, -1 if there
--   is no more. Fails, with what did not fit still in the queue, if the events stream cannot be written.
-- Cost: O(limit * log n); ends early once it has moved half a MiB
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local REFUSED_PAUSE_MS = 60000
local BYTES = 524288 -- that a call moves, about
local KEPT = 1024    -- bytes that are kept of a member that is too large
local most = tonumber(ARGV[2])

local moved, dead, bytes = 0, 0, 0
for looked = 0, tonumber(ARGV[1]) do
  if bytes > BYTES then break end
  local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  local member, score = first[1], first[2]
  if not member or tonumber(score) > now or looked == tonumber(ARGV[1]) then
    return { moved, dead, score or '-1' }
  end
  bytes = bytes + #member
  local said = 'the delay queue held a member that is no event'
  if #member > most then
    said = 'the delay queue held a member of ' .. #member .. ' bytes, over the limit of ' .. ARGV[2]
  end
  -- Out first: a member that could not be removed would otherwise be added again at every call.
  redis.call('ZREMRANGEBYRANK', KEYS[1], 0, 0)
  if #member <= most and is_event(member) then
    local added = redis.pcall('XADD', KEYS[2], '*', unpack(cmsgpack.unpack(member), 2))
    if type(added) == 'table' and added.err then
      redis.call('ZADD', KEYS[1], score, member)
      return added
    end
    moved = moved + 1
  else
    local kept = #member <= most and member or string.sub(member, 1, KEPT)
    local added = redis.pcall('XADD', KEYS[3], '*', 'member', kept,
      'deadreason', 'invalid_argument', 'deadmessage', said,
      'deadattempts', 0, 'deaddeliveries', 0, 'deadstream', KEYS[1],
      'deadtime', string.format('%.0f', now))
    if type(added) == 'table' and added.err then
      redis.call('ZADD', KEYS[1], string.format('%.0f', now + REFUSED_PAUSE_MS), member)
    else
      dead = dead + 1
    end
  end
end
return { moved, dead, string.format('%.0f', now) }
