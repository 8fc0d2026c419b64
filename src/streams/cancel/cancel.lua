#!lua flags=allow-oom
-- Cancels one event: takes it away from where it is, and writes what others are told.
--
-- Atomically, and only if the event still is where it was seen, with the owner that was seen: it leaves its stream, the
-- delay queue or what is parked, and all effects are written. One that a consumer has in hand is acknowledged, and the
-- claim counter of that consumer is raised in the same step, so that a commit which it has under way finds out (see
-- commit.rs): what it commits of the event later is discarded. Keys of the wrong type are found before anything is
-- written, and so is a user who may not take the event away: nobody is told what did not happen. Repeating a call
-- cancels nothing twice.
--
-- KEYS[1]  the stream
-- KEYS[2]  the delay queue
-- KEYS[3]  what is parked of the event's type
-- KEYS[4]  the types of which something is parked
-- KEYS[5]  the claim counter of the owner (without one: the stream)
-- KEYS[6..] the key of each effect
-- ARGV[1]  where the event is: `entry`, `delayed` or `parked`
-- ARGV[2]  the group
-- ARGV[3]  its entry, or its member
-- ARGV[4]  the consumer that has it in hand, or ''
-- ARGV[5]  how long a claim counter outlives its last change, in ms
-- ARGV[6]  the event's type
-- ARGV[7..] for each effect: the type that its key must have if it exists, or `any`; `needed`, `optional`, or `there`:
--          then the key must exist; the number of words, the words of the command without its key
-- Returns  {'done', the number of each effect that was left out, from 1}; {'again', consumer}: another one has it in hand, or nobody ('');
--          {'settled'}; {'gone'}; {'refused', why}: nothing was written
-- Cost     O(log n + effects). Passes when memory is full: what it writes is no more than what it takes away, and a few
--          words; that is not so of one who keeps what it cancels
local stream, queue, parked, kinds = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local place, group, what, owner = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local function stands()
  if place == 'delayed' then return redis.call('ZSCORE', queue, what) and 'here' or 'gone' end
  if place == 'parked' then return redis.call('ZSCORE', parked, what) and 'here' or 'gone' end
  if #redis.call('XREVRANGE', stream, what, what, 'COUNT', 1) == 0 then return 'gone' end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local map = {}
    for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
    if map['name'] == group then
      local pending = redis.call('XPENDING', stream, group, what, what, 1)[1]
      if pending then return pending[2] == owner and 'here' or 'again', pending[2] end
      if not before(map['last-delivered-id'], what) then return 'settled' end
    end
  end
  if owner ~= '' then return 'again', '' end
  return 'here'
end

local how, by = stands()
if how ~= 'here' then return { how, by } end

-- An older server has no way to ask.
local function may(...)
  return not redis.acl_check_cmd or redis.acl_check_cmd(...)
end
local denied
if place == 'delayed' then
  denied = not may('ZREM', queue, what) and 'ZREM on ' .. queue
elseif place == 'parked' then
  denied = not may('ZREM', parked, what) and 'ZREM on ' .. parked or not may('HDEL', kinds, ARGV[6]) and 'HDEL on ' .. kinds
else
  denied = not may('XDEL', stream, what) and 'XDEL on ' .. stream
  if owner ~= '' and not may('XACK', stream, group, what) then denied = 'XACK on ' .. stream end
end
if denied then return { 'refused', 'NOPERM this user needs ' .. denied } end

local answer, effects, at = { 'done' }, {}, 7
for i = 6, #KEYS do
  local wanted, worth, words = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local found = redis.call('TYPE', KEYS[i]).ok
  if wanted == 'any' or found == wanted or (found == 'none' and worth ~= 'there') then
    effects[#effects + 1] = { ARGV[at + 3], KEYS[i], unpack(ARGV, at + 4, at + 2 + words) }
    effects[#effects].worth = worth
    effects[#effects].number = i - 5
  elseif worth == 'needed' then
    return { 'refused', 'WRONGTYPE ' .. KEYS[i] .. ' holds a ' .. found }
  else
    answer[#answer + 1] = i - 5
  end
  at = at + 3 + words
end
-- The guard first: raised for nothing it costs its owner one quick commit, and nothing else.
if owner ~= '' then
  redis.call('INCR', KEYS[5])
  redis.call('PEXPIRE', KEYS[5], ARGV[5])
end
for at_effect, effect in ipairs(effects) do
  local done = redis.pcall(unpack(effect))
  if type(done) == 'table' and done.err then
    if at_effect == 1 and effect.worth == 'needed' then return { 'refused', done.err } end
    answer[#answer + 1] = effect.number
  end
end

if place == 'delayed' then
  redis.call('ZREM', queue, what)
elseif place == 'parked' then
  local head = string.sub(what, 2, 1 + PLACE + LINE)
  local line = string.sub(what, 1, 1) == 's' and string.sub(head, 1, LINE) or string.sub(head, 1 + PLACE)
  local first = string.sub(what, 1, 1) == 's' and string.sub(head, 1 + LINE) or string.sub(head, 1, PLACE)
  redis.call('ZREM', parked, what, 'o' .. line .. first)
  if redis.call('EXISTS', parked) == 0 then redis.call('HDEL', kinds, ARGV[6]) end
else
  if owner ~= '' then redis.call('XACK', stream, group, what) end
  redis.call('XDEL', stream, what)
end
return answer
