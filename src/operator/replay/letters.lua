-- Moves dead letters to a stream. Put before the scripts that do.

-- For each entry in ARGV from `at` on (its id, the number of words, the names and values of the event's fields), only if
-- it is still a dead letter: the event enters its stream and the letter goes. Returns {error, then for each entry its id
-- as an event, '' for one that was no dead letter any more}, and the ids of those that were moved. After an error nothing
-- more is moved.
local function move_letters(dead, to, at)
  local answer, moved = { '' }, {}
  local kind = redis.call('TYPE', to).ok
  if kind ~= 'none' and kind ~= 'stream' then
    return { 'WRONGTYPE ' .. to .. ' holds a ' .. kind }, moved
  end
  while at <= #ARGV do
    local id, words = ARGV[at], tonumber(ARGV[at + 1])
    local added = ''
    if #redis.call('XRANGE', dead, id, id) > 0 then
      added = redis.pcall('XADD', to, '*', unpack(ARGV, at + 2, at + 1 + words))
      if type(added) == 'table' and added.err then
        answer[1] = added.err
        break
      end
      redis.call('XDEL', dead, id)
      moved[#moved + 1] = id
    end
    answer[#answer + 1] = added
    at = at + 2 + words
  end
  return answer, moved
end
