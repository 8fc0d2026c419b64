-- Releases parked events of one type: each leaves what is parked and enters the stream in this one step, the one with
-- the earliest place first.
--
-- Those of a subject that is paused stay. What was released and is done with is forgotten on the way.
--
-- KEYS  1 the stream  2 what is parked of the type  3 the types of which something is  4 the dead-letter stream
-- ARGV  1 the group  2 the type  3 events at the most  4 bytes of one at the most  5.. the subjects that are paused
-- Returns {released, more}: more is 1 where the call ended early. Fails, with what did not fit still parked, if the
--       stream cannot be written.
-- Cost  O(events * log n + paused subjects); ends early once it has moved half a MiB
local stream, parked, kinds, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local BYTES = 524288 -- that a call moves, about
local SWEPT = 200    -- released ones that are looked at, whether they are done with
local most = tonumber(ARGV[4])
local paused = {}
for at = 5, #ARGV do paused[redis.sha1hex(ARGV[at])] = true end

-- The next one: its member, place, line and event. Subjects that are paused are passed once.
local from = 's'
local function next_one()
  local member = first_from(parked, 't')
  if member then
    local line = string.sub(member, 2 + PLACE, 1 + PLACE + LINE)
    return member, string.sub(member, 2, 1 + PLACE), line, string.sub(member, 2 + PLACE + LINE)
  end
  for _ = 5, #ARGV + 1 do
    member = first_from(parked, 's', from)
    if not member then return nil end
    local line = string.sub(member, 2, 1 + LINE)
    if not paused[line] then
      return member, string.sub(member, 2 + LINE, 1 + LINE + PLACE), line, string.sub(member, 2 + LINE + PLACE)
    end
    from = 's' .. line .. ':'
  end
  return nil
end

local released, bytes = 0, 0
for looked = 0, tonumber(ARGV[3]) do
  local member, place, line, event = next_one()
  if not member then break end
  if bytes > BYTES or looked == tonumber(ARGV[3]) then return {released, 1} end
  bytes = bytes + #member
  local added, bad
  if #event <= most and is_event(event) then
    added = redis.pcall('XADD', stream, '*', unpack(cmsgpack.unpack(event), 2))
  else
    local clock = redis.call('TIME')
    added = redis.pcall('XADD', dead, '*', 'member', string.sub(event, 1, 1024), 'deadreason', 'invalid_argument',
      'deadmessage', 'what was parked is no event', 'deadattempts', 0, 'deaddeliveries', 0, 'deadstream', parked,
      'deadtime', string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000)))
    bad = true
  end
  if type(added) == 'table' and added.err then return added end
  released = released + 1
  redis.call('ZREM', parked, member)
  if line ~= NO_LINE then
    local entry = padded(added)
    redis.call('ZREM', parked, 'o' .. line .. place)
    if not bad then redis.call('ZADD', parked, 0, 'o' .. line .. place .. entry, 0, 'r' .. entry .. line .. place) end
  end
end
for swept = 1, SWEPT do
  local back = first_from(parked, 'r')
  local entry = back and string.sub(back, 2, 1 + PLACE)
  if not back or not is_settled(stream, ARGV[1], entry) then break end
  redis.call('ZREM', parked, back, 'o' .. string.sub(back, 2 + PLACE) .. entry)
  if swept == SWEPT then return {released, 1} end
end
if redis.call('EXISTS', parked) == 0 then redis.call('HDEL', kinds, ARGV[2]) end
return {released, 0}
