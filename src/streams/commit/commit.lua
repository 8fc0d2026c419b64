-- Commits the outcome of one entry, if it is still the caller's.
--
-- Atomically: only if the entry is still pending with this consumer and delivery count, and is still in its
-- stream, writes all effects and acknowledges the entry. So of several runs of an event one is committed,
-- whole, and the others leave no trace. Keys of the wrong type are found before anything is written. An
-- effect that fails all the same (a stream whose ids are used up) is left out once another one is written:
-- what is half done must not run again.
--
-- KEYS[1]   the stream
-- KEYS[2..] the key of each effect
-- ARGV[1]   the group
-- ARGV[2]   the consumer
-- ARGV[3]   the entry's id
-- ARGV[4]   its delivery count
-- ARGV[5..] for each effect: the type that its key must have if it exists, or `any`; what becomes of the commit
--           without it, the number of words, the words of the command without its key: name, then what
--           follows the key. `needed`: nothing is committed. `optional`: the commit goes through. `there`:
--           the same, and the key must exist. `instead`: it is only for where an earlier one is left out
-- Returns   {1, then number and error of each effect left out} committed; {0} not the caller's any
--           more; {-1, number of an effect that cannot be written, error} nothing was written. Fails,
--           with nothing written, if the server takes no writes now.
-- Cost      O(log n + effects) for n pending
local stream, group, me, id = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local pending = redis.call('XPENDING', stream, group, id, id, 1)[1]
if not pending or pending[2] ~= me or pending[4] ~= tonumber(ARGV[4]) then
  return { 0 }
end
-- Whether the server takes writes now (memory, replicas): the stream is there, so this sets nothing. The
-- next command is taken whatever the memory, and after it so are all others.
local able = redis.pcall('SET', stream, '', 'NX')
if type(able) == 'table' and able.err then
  return able
end
-- One that was deleted from its stream is given to nobody.
if not redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID')[1] then
  return { 0 }
end
local effects, answer, at, kinds = {}, { 1 }, 5, {}
local missing = false
local function leave_out(number, err)
  answer[#answer + 1] = number
  answer[#answer + 1] = err
  missing = true
end
for i = 2, #KEYS do
  local wanted, worth, words = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local found = kinds[KEYS[i]] or redis.call('TYPE', KEYS[i]).ok
  kinds[KEYS[i]] = found
  if found == wanted or wanted == 'any' or (found == 'none' and worth ~= 'there') or (worth == 'instead' and not missing) then
    local command = { ARGV[at + 3], KEYS[i] }
    for word = 1, words - 1 do
      command[#command + 1] = ARGV[at + 3 + word]
    end
    effects[#effects + 1] = { number = i - 1, worth = worth, command = command }
  elseif worth == 'optional' or worth == 'there' then
    leave_out(i - 1, found == 'none' and 'NOKEY nobody made it' or 'WRONGTYPE the key holds a ' .. found)
  else
    return { -1, i - 1, 'WRONGTYPE the key holds a ' .. found }
  end
  at = at + 3 + words
end
local written = false
for _, effect in ipairs(effects) do
  if effect.worth ~= 'instead' or missing then
    local added = redis.pcall(unpack(effect.command))
    if type(added) ~= 'table' or not added.err then
      written = true
    elseif not written and string.sub(added.err, 1, 4) ~= 'ERR ' then
      return added
    elseif written or effect.worth == 'optional' or effect.worth == 'there' then
      leave_out(effect.number, added.err)
    else
      return { -1, effect.number, added.err }
    end
  end
end
redis.call('XACK', stream, group, id)
return answer
