# Ends commands: those that it is told to end, and, when its input ends because the worker died, all that
# still run. One line each: "+ LEADER MARK" a command began, "- LEADER MARK" it ended by itself,
# "! LEADER MARK" end it. A command is its process group, and on Linux whoever has its mark in the
# environment: a child that left the group does.
trap '' HUP INT TERM

end() {
    kill -s KILL -- "-$1"
    for look in 1 2 3; do
        found=
        for place in $(grep -l -s -F -e "CONVOKE_MARK=$2" /proc/[0-9]*/environ); do
            place=${place#/proc/}
            kill -s KILL "${place%/environ}" && found=yes
        done
        [ "$found" ] || return
    done
}

running=' '
forget() {
    case $running in
        *" $1 "*) running="${running%%" $1 "*} ${running#*" $1 "}" ;;
    esac
}

while read -r word leader mark; do
    case $word in
        +) running="$running$leader:$mark " ;;
        -) forget "$leader:$mark" ;;
        !) forget "$leader:$mark"; end "$leader" "$mark" ;;
    esac
done
for left in $running; do
    end "${left%%:*}" "${left#*:}"
done
