#!lua
-- Assigns the tasks at the heads of the lanes to the instances of the lowest load that can take
-- them, a few of each lane; parks lanes that nobody can take, and looks at some of those again; and
-- forgets finished tasks that are over a bound. Wherever room or a task appears the scripts there
-- assign in the same step: this one finds what they did not within their bounds.
--
-- KEYS  1–14 those of tasks.lua  15… the inboxes of ARGV[1], in its order
-- ARGV  1 the instances whose inboxes are declared  2 the head behind which to begin, or ''
-- Returns {again, inboxes, assigned ids, next head}. again = 1: nothing was changed; call again with
--       the inboxes named as well. Next head is '' behind the last.
-- Cost  O(looks of tasks.lua * log n); O(1) if nothing waits. Refused when memory is full.
local HEADS = 64   -- lanes that one call looks at
local PARKED = 16  -- lanes that are parked that it looks at

open(1, ARGV[1])
-- No name begins before '-'.
local from = ARGV[2] == '' and '[-' or '(' .. ARGV[2]
local heads = redis.call('ZRANGEBYLEX', K.heads, from, '+', 'LIMIT', 0, HEADS)
local last = redis.call('HGET', K.counts, 'parked')
local parked = redis.call('ZRANGEBYLEX', K.heads, last and '(' .. last or '[!', '(#', 'LIMIT', 0, PARKED)

local seen, park, unpark = #heads, {}, {}
for i, head in ipairs(heads) do
  local lane = lane_at(head)
  for _ = 1, FEW do
    if not lane or not lane.id or moved >= MOVED or #planned >= SERVED then break end
    local to = seat(lane.task)
    if not to then
      if lane.id and not hopeful(lane.task) then park[#park + 1] = head end
      break
    end
    call_up(lane, to)
  end
  if spent() or moved >= MOVED or #planned >= SERVED then
    seen = i
    break
  end
end
for _, head in ipairs(parked) do
  local lane = lane_at(head)
  if lane and lane.id then
    if hopeful(lane.task) then
      unpark[#unpark + 1] = head
    elseif string.sub(head, 1, 1) == '!' and not spent() and moved < MOVED and #planned < SERVED then
      -- One who names nothing may have come back with room.
      local to = seat(lane.task)
      if to and lane.id then call_up(lane, to) end
    end
  end
end
local names = missing()
if names then return { 1, names, {}, '' } end

local assigned = serve()
for _, head in ipairs(park) do
  local task = task_of(string.match(head, '(%S+)$'))
  if task and redis.call('ZREM', K.heads, head) == 1 then
    redis.call('ZADD', K.heads, 0, mark_of(task) .. head)
  end
end
for _, head in ipairs(unpark) do
  if redis.call('ZREM', K.heads, head) == 1 then
    redis.call('ZADD', K.heads, 0, string.sub(head, 2))
  end
end
if #parked == PARKED then
  redis.call('HSET', K.counts, 'parked', parked[PARKED])
elseif last then
  redis.call('HDEL', K.counts, 'parked')
end
if #heads > 0 then redis.call('HINCRBY', K.counts, 'turn', 1) end
evict()
save_slots()
return { 0, '', assigned, (seen < #heads or #heads == HEADS) and heads[seen] or '' }
